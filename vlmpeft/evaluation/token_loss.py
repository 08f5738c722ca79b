"""Cross-entropy at supervised positions only, as a sum and a count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vlmpeft.data.batches.encode import IGNORE
from vlmpeft.runtime.errors import UserError


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
    logits, targets = supervised_logits(model, batch)
    return F.cross_entropy(logits.float(), targets, reduction="none")


def supervised_logits(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N, V) that predict the supervised tokens, and those tokens (N,), in reading order over the batch."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if has_encoder(model):
        inputs, targets = split_answers(model, inputs, batch["labels"])
        keep = targets != IGNORE
    else:
        targets = batch["labels"][:, 1:]
        keep = F.pad(targets != IGNORE, (0, 1))  # position t predicts token t + 1
    with head_sees_only(model.get_output_embeddings(), keep):
        logits = model(**inputs, use_cache=False).logits.squeeze(0)  # (N, V)
    return logits, targets[targets != IGNORE]


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


def has_encoder(model: Any) -> bool:
    """Whether the language model is an encoder-decoder."""
    text = model.config.get_text_config()
    return bool(getattr(model.config, "is_encoder_decoder", False) or text.is_encoder_decoder)


def split_answers(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Any, Tensor]:
    """(inputs, labels) of the same conversations for an encoder and a decoder.

    The encoder attends to nothing from the answer on, so positions in the prompt stay what they are; the decoder
    starts from its own start token.

    Args:
        model: an encoder-decoder.
        inputs: input_ids (B, T), attention_mask (B, T) and what belongs to the pictures.
        labels: (B, T), IGNORE outside of the answer.

    Returns:
        inputs with decoder_input_ids (B, L), and labels (B, L).

    Raises:
        UserError: a conversation with several supervised answers; there is one decoder sequence.
    """
    answers = []
    mask = inputs["attention_mask"].clone()
    for row, seen in zip(labels, mask, strict=True):
        places = (row != IGNORE).nonzero().flatten()
        if len(places) and len(places) != places[-1] - places[0] + 1:
            raise UserError(
                "an encoder-decoder writes one answer a conversation, and here are several; split "
                "conversations into turns before training"
            )
        if len(places):
            seen[places[0] :] = 0
        answers.append(row[places])
    targets = pad_sequence(answers, batch_first=True, padding_value=IGNORE)
    start = model.config.get_text_config().decoder_start_token_id
    first = torch.full_like(targets[:, :1], start)
    before = torch.cat([first, targets[:, :-1]], dim=1)
    words = before.masked_fill(before == IGNORE, start)  # never looked at: padding is on the right
    return inputs | {"attention_mask": mask, "decoder_input_ids": words}, targets
