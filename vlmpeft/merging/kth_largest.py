"""The k-th largest magnitude of vectors that are never whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_LOW = 15  # bits that the second pass tells apart
_HIGH_BINS, _LOW_BINS = 1 << 16, 1 << _LOW


def kth_largest(
    pieces: Callable[[], Iterator[tuple[int, Tensor]]], size: int, tasks: int, ranks: Sequence[int]
) -> Tensor:
    """Exact order statistics in two passes over the values, by histograms of their bits: (T, len(ranks)).

    Non-negative floats are ordered as their bit patterns are: the first pass counts the upper 16 bits, the second the
    lower 15 within the bins that the ranks fall into. Memory: two tables of 2^16 a task.

    Args:
        pieces: called once a pass: (task, fp32 values of any shape) ...; what it leaves out of a task's `size` values is zero.
        size: D, values of each task.
        tasks: T.
        ranks: 1 is the largest; 0 stands for infinity.
    """
    high = torch.zeros(tasks, _HIGH_BINS, dtype=torch.long)
    for task, values in pieces():
        high[task] += torch.bincount(_bits(values) >> _LOW, minlength=_HIGH_BINS)
    high[:, 0] += size - high.sum(1)
    bins = [[_locate(high[task], rank) for rank in ranks] for task in range(tasks)]
    low = torch.zeros(tasks, len(ranks), _LOW_BINS, dtype=torch.long)
    seen = torch.zeros(tasks, len(ranks), dtype=torch.long)
    for task, values in pieces():
        bits = _bits(values)
        for i, (bin_, _) in enumerate(bins[task]):
            inside = bits[bits >> _LOW == bin_] & (_LOW_BINS - 1)
            low[task, i] += torch.bincount(inside, minlength=_LOW_BINS)
            seen[task, i] += len(inside)
    found = torch.full((tasks, len(ranks)), torch.inf)
    for task in range(tasks):
        for i, rank in enumerate(ranks):
            if rank:
                bin_, left = bins[task][i]
                low[task, i, 0] += high[task, bin_] - seen[task, i]  # zeros that were left out
                rest, _ = _locate(low[task, i], left)
                found[task, i] = torch.tensor((bin_ << _LOW) | rest, dtype=torch.int32).view(
                    torch.float32
                )
    return found


def _bits(values: Tensor) -> Tensor:
    return values.abs().float().contiguous().view(torch.int32).flatten()


def _locate(counts: Tensor, rank: int) -> tuple[int, int]:
    """(bin that holds the rank-th largest, its rank within the bin)."""
    if not rank:
        return -1, 0
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, rank))
    bin_ = len(counts) - 1 - place
    return bin_, rank - (int(above[place - 1]) if place else 0)
