"""Where adapters disagree, before they are merged: signs and directions of their dW."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from vlmpeft.strategies.low_rank import Delta, dense


@dataclass(frozen=True)
class Conflict:
    """Two or more adapters on one group of parameters.

    Args:
        component: of the parameters.
        layer: number of the layer in its stack; None outside of one.
        cosine: mean over pairs of adapters of the cosine between their dW.
        sign_disagreement: share, among values that more than one adapter changes, where their signs are not all the same.
        norms: of each adapter's dW.
    """

    component: str
    layer: int | None
    cosine: float
    sign_disagreement: float
    norms: tuple[float, ...]


def conflicts(
    parts: Sequence[Mapping[str, Delta]], component_of: Callable[[str], str]
) -> list[Conflict]:
    """Statistics by component and layer, over what at least two adapters change."""
    groups: dict[tuple[str, int | None], list[str]] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        if sum(name in part for part in parts) > 1:
            groups.setdefault((component_of(name), layer_of(name)), []).append(name)
    return [_conflict(parts, *key, names) for key, names in groups.items()]


def layer_of(name: str) -> int | None:
    """The first number in a parameter's name.

    >>> layer_of("model.language_model.layers.3.mlp.up_proj.weight")
    3
    """
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _conflict(
    parts: Sequence[Mapping[str, Delta]], component: str, layer: int | None, names: Sequence[str]
) -> Conflict:
    gram = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    shared = disagree = 0
    for name in names:
        rows = [dense(part[name]).flatten() if name in part else None for part in parts]
        size = next(len(row) for row in rows if row is not None)
        stacked = torch.stack([torch.zeros(size) if row is None else row.cpu() for row in rows])
        gram += (stacked @ stacked.T).double()
        more, differ = _signs(stacked)
        shared, disagree = shared + more, disagree + differ
    norms = gram.diagonal().sqrt()
    return Conflict(
        component,
        layer,
        _mean_cosine(gram, norms),
        disagree / max(1, shared),
        tuple(norms.tolist()),
    )


def _signs(stacked: Tensor) -> tuple[int, int]:
    """(values that more than one adapter changes, those of them with both signs)."""
    changed = (stacked != 0).sum(0) > 1
    both = (stacked > 0).any(0) & (stacked < 0).any(0)
    return int(changed.sum()), int((changed & both).sum())


def _mean_cosine(gram: Tensor, norms: Tensor) -> float:
    found = [
        float(gram[i, j] / (norms[i] * norms[j]))
        for i, j in combinations(range(len(norms)), 2)
        if norms[i] > 0 and norms[j] > 0
    ]
    return sum(found) / len(found) if found else 0.0
