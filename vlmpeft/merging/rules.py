"""Merge rules: (T, D) task vectors -> (D,) merged one. A task vector is dW = adapted - base, flattened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vlmpeft.errors import UserError


def average(task_vectors: Tensor) -> Tensor:
    """The mean (model soups, Wortsman et al. 2022, arXiv:2203.05482): (T, D) -> (D,)."""
    return task_vectors.mean(0)


def linear(task_vectors: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """The weighted sum: (T, D) -> (D,).

    Args:
        task_vectors: (T, D).
        weights: one a task; None is 1 / T each.
    """
    return _weights(task_vectors, weights, 1 / len(task_vectors)) @ task_vectors


def task_arithmetic(
    task_vectors: Tensor, weights: Sequence[float] | None = None, lam: float = 1.0
) -> Tensor:
    """The sum, times lam (Ilharco et al. 2023, arXiv:2212.04089, section 2): (T, D) -> (D,).

    Args:
        task_vectors: (T, D).
        weights: one a task; None is 1 each.
        lam: scale of the sum.
    """
    return lam * (_weights(task_vectors, weights, 1.0) @ task_vectors)


def ties(
    task_vectors: Tensor,
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    lam: float = 1.0,
    majority: Literal["mass", "frequency"] = "mass",
) -> Tensor:
    """Trim, elect sign, merge what agrees (Yadav et al. 2023, arXiv:2306.01708, section 4.2): (T, D) -> (D,).

    As published: one threshold a task over its whole vector, which keeps the `density` D largest magnitudes (those
    equal to the last as well); the sign of the sum is elected; the mean is over values that agree with it and are not zero.
    The authors' repository keeps one value more (`kthvalue`); PEFT's `ties` works on A and B separately, which is another
    thing. A tie of signs goes to neither: the merged value is zero, whatever the order of the tasks.

    Args:
        task_vectors: (T, D).
        weights: one a task, applied before the election; None is 1 each.
        density: share of each task's values that is kept.
        lam: scale of the result.
        majority: elect by the sum of values, or by how many have each sign.
    """
    w = _weights(task_vectors, weights, 1.0)
    trimmed = w[:, None] * trim(task_vectors, density)
    votes = trimmed if majority == "mass" else trimmed.sign()
    agrees = (trimmed.sign() == votes.sum(0).sign()) & (trimmed != 0)
    total = (trimmed * agrees).sum(0)
    share = (w.abs()[:, None] * agrees).sum(0)
    return lam * torch.where(share > 0, total / share.clamp(min=1e-30), torch.zeros_like(total))


def trim(task_vectors: Tensor, density: float) -> Tensor:
    """Each row's largest magnitudes, the others zero: (T, D) -> (T, D).

    Raises:
        UserError: a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise UserError(
            f"density={density}: the share of values that is kept, above 0 and at most 1"
        )
    keep = max(1, round(density * task_vectors.shape[1]))
    size = task_vectors.abs()
    threshold = size.topk(keep, dim=1).values[:, -1:]
    return torch.where(size >= threshold, task_vectors, torch.zeros_like(task_vectors))


def _weights(task_vectors: Tensor, weights: Sequence[float] | None, default: float) -> Tensor:
    """(T,) of the vectors' dtype."""
    given = [default] * len(task_vectors) if weights is None else list(weights)
    if len(given) != len(task_vectors):
        raise UserError(f"weights={given}: {len(task_vectors)} task vectors need as many weights")
    return torch.tensor(given, dtype=task_vectors.dtype, device=task_vectors.device)
