"""A matrix kept as a product: what a LoRA adds, without multiplying it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """b @ a, of shape (d_out, d_in) and rank R at most.

    Args:
        b: (d_out, R).
        a: (R, d_in).
    """

    b: Tensor
    a: Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.b.shape[0], self.a.shape[1]))

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def dense(self) -> Tensor:
        """(d_out, d_in)."""
        return self.b @ self.a

    def truncated(self, rank: int | None = None) -> tuple[LowRank, float]:
        """The best approximation of a rank, and the share of the squared norm it keeps.

        By QR of both factors, then the singular values of the small product: exact, and O((d_out + d_in) R^2) where a
        decomposition of the matrix is O(d_out d_in min(d_out, d_in)).

        Args:
            rank: None keeps every singular value that is more than rounding.
        """
        qb, rb = torch.linalg.qr(self.b)
        qa, ra = torch.linalg.qr(self.a.T)
        u, s, v = torch.linalg.svd(rb @ ra.T)
        keep = _kept(s, rank)
        return _balanced(qb @ u[:, :keep], s[:keep], v[:keep] @ qa.T), _energy(s, keep)


Delta = Tensor | LowRank
"""dW of one parameter, as a tensor or as a product."""


def dense(delta: Delta) -> Tensor:
    """The tensor itself, of a product multiplied out."""
    return delta.dense() if isinstance(delta, LowRank) else delta


def weighted_sum(parts: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """sum_i w_i b_i a_i, exactly: the ranks add."""
    b = torch.cat([weight * part.b for part, weight in zip(parts, weights, strict=True)], dim=1)
    return LowRank(b, torch.cat([part.a for part in parts]))


def best_of_rank(matrix: Tensor, rank: int | None) -> tuple[LowRank, float]:
    """The best approximation of a dense matrix (Eckart and Young), and the share of its squared norm kept.

    Args:
        matrix: (d_out, d_in).
        rank: None keeps every singular value that is more than rounding.
    """
    small = min(matrix.shape)
    if rank is not None and 8 * rank < small:
        return _randomized(matrix, rank)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    keep = _kept(s, rank)
    return _balanced(u[:, :keep], s[:keep], v[:keep]), _energy(s, keep)


def _randomized(matrix: Tensor, rank: int) -> tuple[LowRank, float]:
    """By subspace iteration from a fixed random start (Halko et al. 2011, arXiv:0909.4061, algorithm 4.4)."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], rank + 16, generator=generator, dtype=matrix.dtype)
    q = torch.linalg.qr(matrix @ start.to(matrix.device)).Q
    for _ in range(4):
        q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ q).Q).Q
    u, s, v = torch.linalg.svd(q.T @ matrix, full_matrices=False)
    total = matrix.square().sum()
    energy = float(s[:rank].square().sum() / total) if total > 0 else 1.0
    return _balanced(q @ u[:, :rank], s[:rank], v[:rank]), energy


def _kept(s: Tensor, rank: int | None) -> int:
    if rank is not None:
        return min(rank, len(s))
    if not len(s) or s[0] == 0:
        return 1
    return max(1, int((s > s[0] * len(s) * torch.finfo(s.dtype).eps).sum()))


def _energy(s: Tensor, keep: int) -> float:
    total = s.square().sum()
    return float(s[:keep].square().sum() / total) if total > 0 else 1.0


def _balanced(u: Tensor, s: Tensor, v: Tensor) -> LowRank:
    root = s.sqrt()
    return LowRank(u * root, root[:, None] * v)
