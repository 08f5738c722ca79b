"""Merge rules that drop values at random and rescale the rest: dare_linear, dare_ties, della."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from vlmpeft.merging.averaging import given_weights
from vlmpeft.merging.sparse import Majority, check_density, elected_mean
from vlmpeft.runtime.errors import UserError


def dare_linear(
    task_vectors: Tensor,
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    lam: float = 1.0,
    generator: Generator | None = None,
) -> Tensor:
    """The sum after drop and rescale (DARE, Yu et al. 2023, arXiv:2311.03099, section 3.2): (T, D) -> (D,).

    Each value is dropped with probability p = 1 - density, what stays is divided by 1 - p: the mean is the value x, the
    variance x^2 p / (1 - p).

    Args:
        task_vectors: (T, D).
        weights: one a task; None is 1 each.
        density: probability that a value stays.
        lam: scale of the sum.
        generator: of the drops; None is torch's own.
    """
    kept = dare(task_vectors, density, generator)
    return lam * (given_weights(task_vectors, weights, 1.0) @ kept)


def dare_ties(
    task_vectors: Tensor,
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    lam: float = 1.0,
    majority: Majority = "mass",
    generator: Generator | None = None,
) -> Tensor:
    """Drop and rescale in the place of TIES's trim, then its election and mean: (T, D) -> (D,).

    As in mergekit and PEFT; the paper (arXiv:2311.03099, section 4.3) trims what is left once more.

    Args:
        task_vectors: (T, D).
        weights: one a task, applied before the election; None is 1 each.
        density: probability that a value stays.
        lam: scale of the result.
        majority: as of ties.
        generator: of the drops; None is torch's own.
    """
    kept = dare(task_vectors, density, generator)
    return lam * elected_mean(kept, given_weights(task_vectors, weights, 1.0), majority)


def della(
    task_vectors: Tensor,
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    epsilon: float = 0.1,
    lam: float = 1.0,
    majority: Majority = "mass",
    generator: Generator | None = None,
) -> Tensor:
    """Drop small values more often than large ones, then elect and average (Deep et al. 2024, arXiv:2406.11617, section 3).

    MAGPRUNE: the drop probability falls linearly with the rank of the magnitude, from p + epsilon / 2 to p - epsilon / 2, where
    p = 1 - density; what stays is divided by its own 1 - p_i. The paper ranks within each row of a matrix, mergekit
    too; this ranks within the whole vector, a tensor's. The spread is narrowed where p_i would leave [0, 1): density 1 drops nothing.

    Args:
        task_vectors: (T, D).
        weights: one a task, applied before the election; None is 1 each.
        density: mean probability that a value stays.
        epsilon: spread of the probabilities.
        lam: scale of the result.
        majority: as of ties.
        generator: of the drops; None is torch's own.
    """
    check_density(density)
    if not 0 <= epsilon < 1:
        raise UserError(f"epsilon={epsilon}: the spread of drop probabilities, from 0 to below 1")
    stays = _stay_probabilities(task_vectors, density, epsilon)
    kept = _drop(task_vectors, stays, generator)
    return lam * elected_mean(kept, given_weights(task_vectors, weights, 1.0), majority)


def dare(task_vectors: Tensor, density: float, generator: Generator | None = None) -> Tensor:
    """Drop and rescale: (T, D) -> (T, D).

    Raises:
        UserError: a density outside (0, 1].
    """
    check_density(density)
    return _drop(task_vectors, torch.full_like(task_vectors, density), generator)


def _drop(task_vectors: Tensor, stays: Tensor, generator: Generator | None) -> Tensor:
    kept = torch.bernoulli(stays, generator=generator).bool()
    return torch.where(kept, task_vectors / stays, torch.zeros_like(task_vectors))


def _stay_probabilities(task_vectors: Tensor, density: float, epsilon: float) -> Tensor:
    """(T, D), rising with the rank of the magnitude around their mean, the density."""
    spread = min(epsilon, 2 * (1 - density), 1.98 * density)
    ranks = task_vectors.abs().argsort(dim=1, stable=True).argsort(dim=1)
    steps = ranks.to(task_vectors) / max(1, task_vectors.shape[1] - 1)
    return density + spread * (steps - 0.5)
