"""Merge rules as pure functions: (T, D) task vectors -> (D,) merged one. A task vector is dW = adapted - base, flattened.

Where papers, mergekit and PEFT differ, the docstrings say which is followed: the paper. Linear rules are here; those that
drop values by size are in `sparse`, those that drop at random in `dropping`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmpeft.runtime.errors import UserError


def average(task_vectors: Tensor) -> Tensor:
    """The mean (model soups, Wortsman et al. 2022, arXiv:2203.05482, section 2): (T, D) -> (D,)."""
    return task_vectors.mean(0)


def linear(task_vectors: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """The weighted sum: (T, D) -> (D,). mergekit's divides by the sum of weights unless told not to; this does not.

    Args:
        task_vectors: (T, D).
        weights: one a task; None is 1 / T each.
    """
    return linear_weights(task_vectors, weights) @ task_vectors


def task_arithmetic(
    task_vectors: Tensor, weights: Sequence[float] | None = None, lam: float = 1.0
) -> Tensor:
    """The sum, times lam (Ilharco et al. 2023, arXiv:2212.04089, section 2): (T, D) -> (D,).

    PEFT's `linear` adds A and B, not dW, so its result holds products of one task's A with another's B.

    Args:
        task_vectors: (T, D).
        weights: one a task; None is 1 each.
        lam: scale of the sum.
    """
    return sum_weights(task_vectors, weights, lam) @ task_vectors


def slerp(task_vectors: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Along the great circle between two task vectors (Shoemake 1985, section 3.3): (2, D) -> (D,).

    At t = w_2 / (w_1 + w_2): sin((1 - t) W) / sin W of the first plus sin(t W) / sin W of the second, where W is the angle
    between them. Vectors on one line have no such circle: they are interpolated linearly. mergekit turns whole
    weights, of which dW is a small part; this turns dW.

    Args:
        task_vectors: (2, D).
        weights: one a task; None is the middle.
    """
    return slerp_weights(task_vectors @ task_vectors.T, weights) @ task_vectors


def linear_weights(task_vectors: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """(T,) of `linear`."""
    return given_weights(task_vectors, weights, 1 / len(task_vectors))


def sum_weights(
    task_vectors: Tensor, weights: Sequence[float] | None = None, lam: float = 1.0
) -> Tensor:
    """(T,) of `task_arithmetic`."""
    return lam * given_weights(task_vectors, weights, 1.0)


def slerp_weights(gram: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """(2,) of `slerp`.

    Args:
        gram: (2, 2) inner products of the task vectors.
        weights: one a task.

    Raises:
        UserError: not two task vectors, or weights whose sum is not above 0.
    """
    if len(gram) != 2:
        raise UserError(f"slerp is between two adapters, and there are {len(gram)}; take linear")
    first, second = given_weights(gram, weights, 0.5).tolist()
    if min(first, second) < 0 or first + second <= 0:
        raise UserError(f"slerp weights={[first, second]}: none is below 0, and one is above")
    t = second / (first + second)
    norms = gram.diagonal().sqrt().prod()
    cosine = (gram[0, 1] / norms.clamp(min=1e-30)).clamp(-1, 1)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    if norms == 0 or sine < 1e-4:
        return gram.new_tensor([1 - t, t])
    return torch.stack([torch.sin((1 - t) * angle), torch.sin(t * angle)]) / sine


def given_weights(task_vectors: Tensor, weights: Sequence[float] | None, default: float) -> Tensor:
    """(T,) of the vectors' dtype and device.

    Raises:
        UserError: more or fewer than there are task vectors, or one that is no number.
    """
    given = [default] * len(task_vectors) if weights is None else list(weights)
    if len(given) != len(task_vectors):
        raise UserError(f"weights={given}: {len(task_vectors)} task vectors need as many weights")
    found = torch.tensor(given, dtype=task_vectors.dtype, device=task_vectors.device)
    if not found.isfinite().all():
        raise UserError(f"weights={given}: each is a finite number")
    return found
