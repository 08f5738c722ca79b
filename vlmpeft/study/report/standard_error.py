"""How far a mean over seeds and clusters of items may be off, without bias, and how well that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-12  # share of the largest sum below which an error is none


@dataclass(frozen=True)
class Spread:
    """A standard error, and what it is estimated from.

    Args:
        error: standard error of the mean; nan of a single cluster, 0 if all are equal.
        freedom: degrees of freedom, by Satterthwaite (1946).
    """

    error: float
    freedom: float


def mean(arms: Sequence[np.ndarray], sizes: np.ndarray) -> float:
    """The mean over items of the arms' means over seeds."""
    return float(sum(arm.mean(0).sum() for arm in arms) / sizes.sum())


def spread(arms: Sequence[np.ndarray], sizes: np.ndarray) -> Spread:
    """The standard error of `mean`, for seeds and clusters that are both drawn from many.

    Var = V_seeds + V_clusters - V_both, each by its own residuals: the two-way cluster-robust variance (Cameron, Gelbach and
    Miller 2011, doi:10.1198/jbes.2010.07136, section 2.2), with n / (n - 1) for each. V_both is what seeds and clusters have
    in common, which the first two terms both count. Degrees of freedom are Satterthwaite's, so three seeds count as three
    where seeds decide, and hundreds of pictures as hundreds where pictures do.

    Args:
        arms: sums (S, C) each; an arm of one seed adds nothing for seeds.
        sizes: items of each cluster, (C,).
    """
    clusters, items = len(sizes), sizes.sum()
    if clusters < 2:
        return Spread(float("nan"), float("nan"))
    factor = clusters / (clusters - 1) / items**2
    residuals = [arm - arm.mean(0).sum() / items * sizes for arm in arms]  # (S, C)
    by_cluster = np.sum([r.mean(0) for r in residuals], axis=0)  # (C,)
    of_clusters = factor * float((by_cluster**2).sum())
    parts = [_of_seeds(r, sizes, factor) for r in residuals if len(r) > 1]
    of_seeds = sum(seeds for seeds, _, _ in parts)
    both = sum(shared for _, shared, _ in parts)
    variance = max(of_seeds + of_clusters - both, of_seeds, of_clusters)
    if variance <= (_ROUNDING * max(float(np.abs(arm).max()) for arm in arms)) ** 2:
        return Spread(0.0, clusters - 1.0)
    uncertain = of_clusters**2 / (clusters - 1) + sum(v**2 / (n - 1) for v, _, n in parts)
    return Spread(variance**0.5, variance**2 / uncertain)


def _of_seeds(residuals: np.ndarray, sizes: np.ndarray, factor: float) -> tuple[float, float, int]:
    """(variance of seeds, variance of seeds and clusters together, seeds) of residuals (S, C)."""
    seeds, items = len(residuals), sizes.sum()
    by_seed = residuals.sum(1) / items  # (S,)
    rest = residuals - residuals.mean(0) - by_seed[:, None] * sizes
    pairs = seeds * (seeds - 1)
    return float((by_seed**2).sum() / pairs), factor * float((rest**2).sum() / pairs), seeds
