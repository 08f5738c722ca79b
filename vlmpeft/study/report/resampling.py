"""Resampled means of a table of scores, one row a seed and one column a cluster of items.

Everything here is a function of sums: of one row of a study, or of the difference of two, `arms` are matrices of signed sums
(S, C), whose means over seeds add up, and `sizes` (C,) says how many items each cluster has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

RESAMPLES, PERMUTATIONS = 4_000, 10_000
_BLOCK_BYTES = 2**25  # of one matrix of draws; larger ones are made block by block
_SAME = 1e-9  # share of a sum's scale below which two sums are the same one


def two_level_draws(
    arms: Sequence[np.ndarray], sizes: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Means under the two-level bootstrap: seeds are drawn with replacement, and independently of them clusters.

    All runs see the same items, so the levels are crossed (the pigeonhole bootstrap of Owen 2007, arXiv:0712.1111).
    An arm of one seed keeps it. The same shape and seed give the same draws, so tables are reproducible.

    Args:
        arms: sums (S, C) each.
        sizes: items of each cluster, (C,).
        resamples: how many draws, B.
        seed: of the draws.

    Returns:
        (B,).
    """
    chosen = [seed_shares(len(arm), resamples, seed, n) for n, arm in enumerate(arms)]  # (S, B)
    means, start = [], 0
    for counts in _blocks(_counts, len(sizes), resamples, seed):  # (C, b)
        part = slice(start, start := start + counts.shape[1])
        pairs = zip(chosen, arms, strict=True)
        sums = sum((share[:, part] * (arm @ counts)).sum(0) for share, arm in pairs)  # (b,)
        means.append(sums / (sizes @ counts))
    return np.concatenate(means)


@lru_cache(maxsize=16)
def seed_shares(seeds: int, resamples: int, seed: int, arm: int) -> np.ndarray:
    """How much of the mean over seeds each seed is, (S, B); columns sum to 1."""
    if seeds == 1:
        return np.ones((1, resamples))
    source = np.random.default_rng([seed, 2, arm, seeds])
    return source.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).T / seeds


def sign_flip_p(differences: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p of a sum of differences, when the sign of each could as well be the other one.

    With few differences every pattern of signs is taken, and p is exact; otherwise patterns are drawn, and the observed one
    counts as one of them (Phipson and Smyth 2010, arXiv:1603.05766, equation 2), so p is never 0.

    Args:
        differences: (C,).
        permutations: how many patterns are drawn.
        seed: of the draws.
    """
    nonzero = differences[differences != 0]  # the sign of a zero changes nothing
    if not len(nonzero):
        return 1.0
    least = abs(nonzero.sum()) - _SAME * np.abs(nonzero).sum()
    if 2 ** len(nonzero) <= permutations:
        return float(np.mean(np.abs(nonzero @ _every_sign(len(nonzero))) >= least))
    blocks = _blocks(_signs, len(differences), permutations, seed)
    reached = sum(int((np.abs(differences @ signs) >= least).sum()) for signs in blocks)
    return (1 + reached) / (1 + permutations)


def _blocks(
    make: Callable[[int, int, int, int], np.ndarray], rows: int, columns: int, seed: int
) -> Iterator[np.ndarray]:
    """Draws (rows, columns), as blocks of some columns each."""
    width = max(1, _BLOCK_BYTES // (8 * rows))
    for number, start in enumerate(range(0, columns, width)):
        yield make(rows, min(width, columns - start), seed, number)


@lru_cache(maxsize=2)
def _counts(clusters: int, draws: int, seed: int, block: int) -> np.ndarray:
    """How often each cluster is drawn, (C, b)."""
    source = np.random.default_rng([seed, 0, clusters, block])
    counts = np.empty((clusters, draws))
    for start in range(0, draws, 256):  # in the processor's cache
        width = min(256, draws - start)
        drawn = source.integers(0, clusters, (width, clusters)) * width + np.arange(width)[:, None]
        found = np.bincount(drawn.ravel(), minlength=clusters * width)
        counts[:, start : start + width] = found.reshape(clusters, width)
    return counts


@lru_cache(maxsize=2)
def _signs(clusters: int, draws: int, seed: int, block: int) -> np.ndarray:
    """-1 or 1 for each cluster, (C, b)."""
    source = np.random.default_rng([seed, 1, clusters, block])
    return source.integers(0, 2, (clusters, draws), dtype=np.int8) * 2.0 - 1


def _every_sign(clusters: int) -> np.ndarray:
    """Every pattern of signs, (C, 2^C)."""
    return ((np.arange(2**clusters) >> np.arange(clusters)[:, None]) & 1) * 2.0 - 1
