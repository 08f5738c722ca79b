"""From encoded conversations to padded batches."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from vlmpeft.data.batches.encode import IGNORE, PER_TOKEN, Encoded


def collate(samples: list[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right to the longest of the batch: ids (B, T), labels (B, T), mask (B, T), image inputs."""
    return _pad(samples, pad_id, [sample.input_ids for sample in samples], left=False) | {
        "labels": _stack([sample.labels for sample in samples], IGNORE, left=False)
    }


def collate_prompts(
    samples: list[Encoded], pad_id: int, side: Literal["left", "right"] = "left"
) -> dict[str, Tensor]:
    """Pad what stands before each sample's first answer, as generation needs it: on the right for an encoder."""
    prompts = [sample.input_ids[: sample.turns[0][0]] for sample in samples]
    return _pad(samples, pad_id, prompts, left=side == "left")


def _pad(samples: list[Encoded], pad_id: int, ids: list[Tensor], left: bool) -> dict[str, Tensor]:
    batch: dict[str, Any] = {
        "input_ids": _stack(ids, pad_id, left),
        "attention_mask": _stack([torch.ones_like(row) for row in ids], 0, left),
    }
    keys = dict.fromkeys(key for sample in samples for key in sample.model_inputs)
    for key in keys:
        values = [sample.model_inputs.get(key) for sample in samples]
        if key in PER_TOKEN or "cross_attention_mask" in keys:
            values = _with_blanks(values)
        values = [value for value in values if value is not None]
        if key in PER_TOKEN:
            shape = _largest([value[0, 0] for value in values])
            rows = [
                _grown(value[0, : len(row)], (len(row), *shape))
                for value, row in zip(values, ids, strict=True)
            ]
            batch[key] = _stack(rows, 0, left)
        else:
            batch[key] = _joined(key, values, samples)
    return batch


def join_pictures(key: str, samples: list[Encoded]) -> Tensor:
    """One processor output about pictures, of all samples that have it."""
    return _joined(key, [s.model_inputs[key] for s in samples if key in s.model_inputs], samples)


def _joined(key: str, values: list[Tensor], samples: list[Encoded]) -> Tensor:
    if key == "pixel_values" and any("target_sizes" in s.model_inputs for s in samples):
        return torch.cat(values, dim=-1)  # MiniCPM-V: all pictures in one strip (1, C, P, L)
    if key == "image_token_pooling":
        values = _renumbered(values, samples)
    shape = _largest([value[0] for value in values])
    return torch.cat([_grown(value, (len(value), *shape)) for value in values])


def _renumbered(values: list[Tensor], samples: list[Encoded]) -> list[Tensor]:
    """Molmo 2's patches that make a token, by their number among the batch's patches; -1 is none."""
    pictures = [s.model_inputs["pixel_values"] for s in samples if "pixel_values" in s.model_inputs]
    if not pictures:  # there are features instead
        return values
    before = [0, *accumulate(crops.shape[:2].numel() for crops in pictures)]
    return [
        torch.where(value < 0, value, value + first)
        for value, first in zip(values, before[:-1], strict=True)
    ]


def _with_blanks(values: list[Tensor | None]) -> list[Tensor | None]:
    """Zeros for the conversations without pictures, where every conversation has a row of its own."""
    first = next(value for value in values if value is not None)
    blank = torch.zeros_like(first[:, :1])
    return [blank if value is None else value for value in values]


def _largest(values: list[Tensor]) -> tuple[int, ...]:
    return tuple(max(sizes) for sizes in zip(*(value.shape for value in values), strict=True))


def _grown(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros at the end of each dimension: pictures of other sizes, fewer pictures, shorter texts."""
    if value.shape == shape:
        return value
    grown = value.new_zeros(shape)
    grown[tuple(slice(size) for size in value.shape)] = value
    return grown


def _stack(rows: list[Tensor], value: int, left: bool) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=value, padding_side="left" if left else "right"
    )
