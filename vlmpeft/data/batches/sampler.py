"""Which conversations form a batch: of similar length, in an order that seed and epoch decide."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from torch.utils.data import Sampler


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of similar length in random order; the order is a pure function of (seed, epoch).

    That makes an exact resume in mid-epoch trivial: `resume(epoch, batch)` and the rest follows.

    Args:
        lengths: tokens of each sample, image tokens included.
        batch_size: samples a batch, on each rank.
        weights: how often each sample comes in an epoch; default once. Of a fraction, another random part
            comes each epoch, until each of its samples has come.
        seed: of the shuffling.
        rank: this process; rank r takes batches r, r + world_size, ...
        world_size: number of processes; each gets the same number of batches.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._groups: dict[float, list[int]] = {}  # weight -> samples
        for index, weight in enumerate(weights or [1.0] * len(self.lengths)):
            self._groups.setdefault(weight, []).append(index)
        self.samples = sum(_drawn(weight, len(group)) for weight, group in self._groups.items())
        self.epoch, self._first_batch = 0, 0

    @property
    def sampler(self) -> BucketBatchSampler:
        """Itself: Lightning announces the epoch to `batch_sampler.sampler`, never to `batch_sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        if epoch != self.epoch:
            self.epoch, self._first_batch = epoch, 0

    def resume(self, epoch: int, batch: int) -> None:
        """Let the next iteration start at a batch of an epoch; the epochs after it are whole."""
        self.epoch, self._first_batch = epoch, batch

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, also after `resume`."""
        batches = math.ceil(self.samples / self.batch_size)
        return math.ceil(batches / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._epoch_batches()
        # every rank gets as many: with fewer batches than ranks, some of them more than twice
        batches = list(islice(cycle(batches), len(self) * self.world_size))
        mine = batches[self.rank :: self.world_size]
        first, self._first_batch = self._first_batch, 0
        yield from mine[first:]

    def _draw(self, weight: float) -> list[int]:
        """A weight's samples as often as it says whole, and for the rest the next of them in a fixed order."""
        group = self._groups[weight]
        whole, rest = divmod(_drawn(weight, len(group)), len(group))
        order = group.copy()
        random.Random(f"{self.seed} weight {weight}").shuffle(order)
        start = self.epoch * rest
        return group * whole + [order[(start + i) % len(order)] for i in range(rest)]

    def _epoch_batches(self) -> list[list[int]]:
        """Shuffle, sort by length within pools of 32 batches, cut, shuffle the batches."""
        rng = random.Random(f"{self.seed} {self.epoch}")
        order = [i for weight in self._groups for i in self._draw(weight)]
        rng.shuffle(order)
        pool = 32 * self.batch_size
        pools = [
            sorted(order[i : i + pool], key=lambda index: self.lengths[index])
            for i in range(0, len(order), pool)
        ]
        batches = [
            members[i : i + self.batch_size]
            for members in pools
            for i in range(0, len(members), self.batch_size)
        ]
        rng.shuffle(batches)
        return batches


def _drawn(weight: float, size: int) -> int:
    """How many samples of a group of `size` an epoch has; at least one."""
    return max(1, round(weight * size))
