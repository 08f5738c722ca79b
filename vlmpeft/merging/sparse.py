"""Merge rules that keep values by their size: ties, magnitude, breadcrumbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vlmpeft.merging.averaging import given_weights
from vlmpeft.runtime.errors import UserError

Majority = Literal["mass", "frequency"]


def ties(
    task_vectors: Tensor,
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    lam: float = 1.0,
    majority: Majority = "mass",
) -> Tensor:
    """Trim, elect sign, merge what agrees (Yadav et al. 2023, arXiv:2306.01708, section 4.2): (T, D) -> (D,).

    As published: one threshold a task over its whole vector, which keeps the `density` D largest magnitudes (those
    equal to the last as well); the sign of the sum is elected; the mean is over values that agree with it and are not zero.
    The authors' repository keeps one value more (`kthvalue`); PEFT's `ties` works on A and B separately, which is another
    thing, its `ties_svd` on dW with a threshold a tensor; mergekit too has a threshold a tensor, and divides by the weights that
    agree only if told to normalize. A tie of signs goes to neither: the merged value is zero, whatever the order of the tasks.
    The mean is divided by weights without sign (mergekit's with sign, PEFT's by how many agree): a negative weight is the
    negated task vector with the positive weight.

    Args:
        task_vectors: (T, D).
        weights: one a task, applied before the election; None is 1 each.
        density: share of each task's values that is kept.
        lam: scale of the result.
        majority: elect by the sum of values, or by how many have each sign.
    """
    trimmed = trim(task_vectors, density)
    return lam * elected_mean(trimmed, given_weights(task_vectors, weights, 1.0), majority)


def magnitude(
    task_vectors: Tensor,
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    lam: float = 1.0,
) -> Tensor:
    """The sum of each task's largest values (PEFT's `magnitude_prune`, on dW): (T, D) -> (D,).

    The trim of TIES (arXiv:2306.01708, section 4.2, step 1) without its election.

    Args:
        task_vectors: (T, D).
        weights: one a task; None is 1 each.
        density: share of each task's values that is kept.
        lam: scale of the sum.
    """
    return lam * (given_weights(task_vectors, weights, 1.0) @ trim(task_vectors, density))


def breadcrumbs(
    task_vectors: Tensor,
    weights: Sequence[float] | None = None,
    density: float = 0.85,
    gamma: float = 0.01,
    lam: float = 1.0,
) -> Tensor:
    """The sum of what is neither outlier nor noise (Davari & Belilovsky 2023, arXiv:2312.06795, section 3.1): (T, D) -> (D,).

    Of each task the largest `gamma` and the smallest 1 - density - gamma of the values are masked. The paper masks layer
    by layer: take scope tensor. Its beta and gamma are percentiles from below; density and gamma here are mergekit's. Where
    density + gamma is above 1, density wins, so density 1 masks nothing.

    Args:
        task_vectors: (T, D).
        weights: one a task; None is 1 each.
        density: share of each task's values that is kept.
        gamma: share of the largest that is masked.
        lam: scale of the sum.
    """
    cuts = order_statistics(task_vectors, breadcrumbs_counts(task_vectors.shape[1], density, gamma))
    return lam * (given_weights(task_vectors, weights, 1.0) @ between(task_vectors, cuts))


def trim(task_vectors: Tensor, density: float) -> Tensor:
    """Each row's largest magnitudes, the others zero: (T, D) -> (T, D).

    Raises:
        UserError: a density outside (0, 1].
    """
    counts = trim_counts(task_vectors.shape[1], density)
    return between(task_vectors, order_statistics(task_vectors, counts))


def trim_counts(size: int, density: float) -> tuple[int, int]:
    """(largest that are masked, values that are not smaller than the last kept) of `size` values.

    density x size is rounded, halves to the even number, and is at least 1. mergekit and PEFT cut it off, which takes 28 of
    0.29 x 100: its floating-point product is below 29.

    Raises:
        UserError: a density outside (0, 1].
    """
    check_density(density)
    return 0, max(1, round(density * size))


def breadcrumbs_counts(size: int, density: float, gamma: float) -> tuple[int, int]:
    """The same, for `breadcrumbs`.

    Raises:
        UserError: a density outside (0, 1], or a gamma outside [0, 1).
    """
    _, keep = trim_counts(size, density)
    if not 0 <= gamma < 1:
        raise UserError(
            f"gamma={gamma}: the share of the largest that is masked, at least 0 and below 1"
        )
    masked = min(round(gamma * size), size - keep)
    return masked, masked + keep


def check_density(density: float) -> None:
    """Raise a UserError unless it is in (0, 1]."""
    if not 0 < density <= 1:
        raise UserError(
            f"density={density}: the share of values that is kept, above 0 and at most 1"
        )


def order_statistics(task_vectors: Tensor, counts: tuple[int, int]) -> Tensor:
    """(T, 2): magnitudes from which values are masked as the largest (inf: none), and down to which they are kept."""
    masked, kept = counts
    sizes = task_vectors.abs().topk(kept, dim=1).values
    low = sizes[:, -1]
    high = sizes[:, masked - 1] if masked else torch.full_like(low, torch.inf)
    return torch.stack([high, low], dim=1)


def between(task_vectors: Tensor, cuts: Tensor) -> Tensor:
    """Values smaller than the first cut of their row and not smaller than its second, the others zero: (T, D) -> (T, D)."""
    size = task_vectors.abs()
    keep = (size < cuts[:, :1]) & (size >= cuts[:, 1:])
    return torch.where(keep, task_vectors, torch.zeros_like(task_vectors))


def elected_mean(trimmed: Tensor, weights: Tensor, majority: Majority = "mass") -> Tensor:
    """Steps 2 and 3 of TIES: the weighted mean of the values whose sign is elected: (T, D), (T,) -> (D,)."""
    weighted = weights[:, None] * trimmed
    votes = weighted if majority == "mass" else weighted.sign()
    agrees = (weighted.sign() == votes.sum(0).sign()) & (weighted != 0)
    total = (weighted * agrees).sum(0)
    share = (weights.abs()[:, None] * agrees).sum(0)
    return torch.where(share > 0, total / share.clamp(min=1e-30), torch.zeros_like(total))
