"""From encoded conversations to padded batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmpeft.data.encode import IGNORE, PER_TOKEN, Encoded


def collate(samples: list[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right to the longest of the batch: ids (B, T), labels (B, T), mask (B, T), image inputs."""
    return _pad(samples, pad_id, [sample.input_ids for sample in samples], left=False) | {
        "labels": _stack([sample.labels for sample in samples], IGNORE, left=False)
    }


def collate_prompts(samples: list[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Pad on the left what stands before each sample's first answer, as generation needs it."""
    prompts = [sample.input_ids[: sample.turns[0][0]] for sample in samples]
    return _pad(samples, pad_id, prompts, left=True)


def _pad(samples: list[Encoded], pad_id: int, ids: list[Tensor], left: bool) -> dict[str, Tensor]:
    batch: dict[str, Any] = {
        "input_ids": _stack(ids, pad_id, left),
        "attention_mask": _stack([torch.ones_like(row) for row in ids], 0, left),
    }
    keys = dict.fromkeys(key for sample in samples for key in sample.model_inputs)
    for key in keys:
        values = [sample.model_inputs.get(key) for sample in samples]
        if key in PER_TOKEN:
            rows = [
                torch.zeros_like(row) if value is None else value[0][: len(row)]
                for value, row in zip(values, ids, strict=True)
            ]
            batch[key] = _stack(rows, 0, left)
        else:
            batch[key] = torch.cat([value for value in values if value is not None])
    return batch


def _stack(rows: list[Tensor], value: int, left: bool) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=value, padding_side="left" if left else "right"
    )
