"""Cross-entropy at supervised positions only, as a sum and a count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmpeft.data.encode import IGNORE


def supervised_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of -log p over the batch's supervised tokens, and how many there are.

    Logits exist at those positions alone: the others are dropped just before the output head, so that
    scaling and soft-capping after the head stay the model's own.

    Args:
        model: any image-text-to-text model.
        batch: input_ids (B, T), labels (B, T) with IGNORE where nothing is to be learnt, and the rest of
            what the processor returned.
    """
    losses = token_losses(model, batch)
    return losses.sum(), torch.tensor(losses.numel(), device=losses.device)


def token_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """-log p of every supervised token, fp32 (N,), in reading order over the batch."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    targets = batch["labels"][:, 1:]
    keep = F.pad(targets != IGNORE, (0, 1))  # position t predicts token t + 1
    with head_sees_only(model.get_output_embeddings(), keep):
        logits = model(**inputs, use_cache=False).logits.squeeze(0)  # (N, V)
    return F.cross_entropy(logits.float(), targets[targets != IGNORE], reduction="none")


@contextmanager
def head_sees_only(head: nn.Module, keep: Tensor) -> Iterator[None]:
    """Let only the hidden states at `keep` (B, T) into the output head: (B, T, D) -> (1, N, D)."""

    def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][keep].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
