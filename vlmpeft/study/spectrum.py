"""Singular values of what a run changed: how many directions an adapter really uses."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.low_rank import Delta, LowRank
from vlmpeft.strategies.plan import AttachedPlan

LARGEST = 64  # of each matrix
DENSE_LIMIT = 4_000_000  # entries of a dense dW that is decomposed


@torch.no_grad()
def singular_values(attached: AttachedPlan) -> dict[str, list[float]]:
    """Parameter -> the largest singular values of its dW, descending; {} for a plan that is no change of weights.

    Of a product B A they are those of R_B R_A^T, from two QR decompositions, so that a LoRA of any size takes milliseconds. A dense
    dW of more than DENSE_LIMIT entries is left out.
    """
    try:
        products = attached.products()
    except UserError:
        return {}
    found = {}
    for name, delta in products.items():
        values = _values(delta)
        if values is not None:
            found[name] = [float(f"{value:.4g}") for value in values[:LARGEST].tolist()]
    return found


def _values(delta: Delta) -> Tensor | None:
    if isinstance(delta, LowRank):
        small = torch.linalg.qr(delta.b.float()).R @ torch.linalg.qr(delta.a.float().T).R.T
        return torch.linalg.svdvals(small)
    if delta.ndim != 2 or delta.numel() > DENSE_LIMIT:
        return None
    return torch.linalg.svdvals(delta.float())
