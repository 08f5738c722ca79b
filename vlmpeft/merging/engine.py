"""Applies a recipe to adapters' dW, a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vlmpeft.merging.averaging import given_weights
from vlmpeft.merging.kth_largest import kth_largest
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.sparse import between, elected_mean
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.low_rank import Delta, LowRank, dense, weighted_sum

PIECE = 2**23  # values of a task that are merged at once
Parts = Sequence[Mapping[str, Delta]]


@dataclass(frozen=True)
class _Group:
    """What shares its thresholds and angles: names, in order, with their sizes."""

    names: tuple[str, ...]
    parts: Parts

    def inner_products(self) -> Tensor:
        """(T, T), fp64."""
        gram = torch.zeros(len(self.parts), len(self.parts), dtype=torch.float64)
        for name in self.names:
            for i, first in enumerate(self.parts):
                for j in range(i, len(self.parts)):
                    if name in first and name in self.parts[j]:
                        gram[i, j] += _inner(first[name], self.parts[j][name])
        return gram + gram.triu(1).T

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        for name in self.names:
            for task, part in enumerate(self.parts):
                if name in part:
                    for piece in dense(part[name]).flatten().split(PIECE):
                        yield task, piece

    def size(self, shapes: Mapping[str, torch.Size]) -> int:
        return sum(shapes[name].numel() for name in self.names)


def merge(
    parts: Parts, recipe: Recipe, component_of: Callable[[str], str]
) -> Iterator[tuple[str, Delta]]:
    """(parameter, merged dW) over all parameters that any adapter changes.

    A weighted sum of products stays a product. Everything else is multiplied out, one tensor at a time: memory is that of
    T + 1 times the largest tensor, whatever the model's size.

    Args:
        parts: of each adapter, parameter -> dW.
        recipe: the rule and its knobs.
        component_of: parameter -> component.

    Raises:
        UserError: one parameter with two shapes, or weights of the wrong length.
    """
    shapes = shapes_of(parts)
    scope = recipe.scope or recipe.rule.scope
    keys: dict[str, Callable[[str], str]] = {
        "model": lambda _: "",
        "component": component_of,
        "tensor": lambda name: name,
    }
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(keys[scope](name), []).append(name)
    generator = torch.Generator().manual_seed(recipe.seed)
    for names in groups.values():
        group = _Group(tuple(names), parts)
        merge_one = _prepare(group, recipe, shapes, generator)
        for name in names:
            yield name, merge_one(name, component_of(name))


def shapes_of(parts: Parts) -> dict[str, torch.Size]:
    """Parameter -> its shape, over all adapters.

    Raises:
        UserError: one parameter with two shapes.
    """
    shapes: dict[str, torch.Size] = {}
    for part in parts:
        for name, delta in part.items():
            if shapes.setdefault(name, delta.shape) != delta.shape:
                raise UserError(
                    f"{name} has shape {tuple(shapes[name])} in one adapter and {tuple(delta.shape)} in another: they "
                    "belong to different bases"
                )
    return shapes


def _prepare(
    group: _Group, recipe: Recipe, shapes: Mapping[str, torch.Size], generator: torch.Generator
) -> Callable[[str, str], Delta]:
    """The statistics of a group, taken once; returns (name, component) -> merged dW."""
    rule = recipe.rule
    if rule.coefficients:
        gram = group.inner_products() if rule.needs_gram else torch.zeros(len(group.parts), 0)
        return partial(_weighted, group.parts, recipe, gram)
    if rule.counts:
        size, knobs = group.size(shapes), recipe.knobs("")
        taken = {k: v for k, v in knobs.items() if k in ("density", "gamma")}
        ranks = rule.counts(size, **taken)
        cuts = kth_largest(group.pieces, size, len(group.parts), ranks)
        return partial(_cut, group.parts, recipe, shapes, cuts)
    return partial(_value_by_value, group.parts, recipe, shapes, generator)


def _weighted(parts: Parts, recipe: Recipe, gram: Tensor, name: str, component: str) -> Delta:
    assert recipe.rule.coefficients is not None
    weights = recipe.rule.coefficients(gram, **recipe.knobs(component)).tolist()
    here = [(part[name], w) for part, w in zip(parts, weights, strict=True) if name in part]
    products = [delta for delta, _ in here if isinstance(delta, LowRank)]
    if len(products) == len(here):
        return weighted_sum(products, [w for _, w in here])
    total = here[0][1] * dense(here[0][0])
    for delta, weight in here[1:]:
        total += weight * dense(delta)
    return total


def _cut(
    parts: Parts,
    recipe: Recipe,
    shapes: Mapping[str, torch.Size],
    cuts: Tensor,
    name: str,
    component: str,
) -> Tensor:
    knobs = recipe.knobs(component)
    weights = _task_weights(parts, knobs)

    def of(stacked: Tensor) -> Tensor:
        kept = between(stacked, cuts)
        if "majority" in knobs:
            return knobs["lam"] * elected_mean(kept, weights, knobs["majority"])
        return knobs["lam"] * (weights @ kept)

    return _in_pieces(parts, name, shapes[name], of, PIECE)


def _value_by_value(
    parts: Parts,
    recipe: Recipe,
    shapes: Mapping[str, torch.Size],
    generator: torch.Generator,
    name: str,
    component: str,
) -> Tensor:
    draws = {"generator": generator} if recipe.rule.is_random else {}
    of = partial(recipe.rule.merge, **draws, **recipe.knobs(component))
    size = shapes[name].numel() if recipe.rule.whole_tensors else PIECE
    return _in_pieces(parts, name, shapes[name], of, size)


def _task_weights(parts: Parts, knobs: Mapping[str, object]) -> Tensor:
    return given_weights(torch.zeros(len(parts), 0), knobs["weights"], 1.0)  # type: ignore[arg-type]


def _in_pieces(
    parts: Parts,
    name: str,
    shape: torch.Size,
    of: Callable[[Tensor], Tensor],
    size: int,
) -> Tensor:
    """A function of (T, n) stacked values, over a whole tensor."""
    rows = [dense(part[name]).flatten().cpu() if name in part else None for part in parts]
    merged = torch.empty(shape.numel())
    for start in range(0, shape.numel(), size):
        stop = min(start + size, shape.numel())
        zero = torch.zeros(stop - start)
        stacked = torch.stack([zero if row is None else row[start:stop] for row in rows])
        merged[start:stop] = of(stacked)
    return merged.view(shape)


def _inner(first: Delta, second: Delta) -> float:
    """Sum of the products of all values, without multiplying two products out."""
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        b = first.b.double().T @ second.b.double()
        return float((b * (first.a.double() @ second.a.double().T)).sum())
    return float(dense(first).double().flatten() @ dense(second).double().flatten())
