"""What a merge comes to: factors where they carry it, dense dW where they do not, and the adapter that holds both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmpeft.base.components import PLANNED, Components
from vlmpeft.merging.operands import give_memory
from vlmpeft.strategies import Frozen, LoRA, Strategy
from vlmpeft.strategies.dense import DELTA, Dense, carriers
from vlmpeft.strategies.low_rank import Delta, LowRank, best_of_rank, dense
from vlmpeft.strategies.plan import AttachedPlan, Plan, attach

ENOUGH = 0.95  # share of the squared norm below which `auto` writes dense dW
SCALE = 2.0  # alpha / r of the LoRA that is written, the default of LoRA


@dataclass
class Result:
    """A merged adapter before it is written.

    Args:
        products: weight -> its LoRA.
        tensors: parameter -> dense dW.
        own: trained tensor -> value, of strategies without dW.
        strategies: component -> those strategies.
        kept: weight -> (squared norm, share of it the LoRA keeps).
        refused: the same of weights that are dense because a LoRA would keep too little.
    """

    products: dict[str, LowRank] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    strategies: dict[str, list[Strategy]] = field(default_factory=dict)
    kept: dict[str, tuple[float, float]] = field(default_factory=dict)
    refused: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def energy(self) -> float:
        """Share of the squared norm of dW that the LoRAs keep, of 1."""
        return _share(self.kept)

    @property
    def refused_energy(self) -> float:
        """What LoRAs would have kept of the weights that are dense for want of it."""
        return _share(self.refused)

    @property
    def rank(self) -> int:
        """The largest rank of a LoRA in it."""
        return max((product.rank for product in self.products.values()), default=0)


def shape_result(
    merged: Iterable[tuple[str, Delta]],
    rank: int | str,
    largest: Mapping[str, int],
    linears: Collection[str],
) -> Result:
    """Decide tensor by tensor how dW is written.

    Args:
        merged: (parameter, dW).
        rank: as of Recipe.
        largest: weight -> the largest rank that went into it; missing where something dense did.
        linears: weights beside which a LoRA can stand.
    """
    result = Result()
    for name, delta in merged:
        if name not in linears:
            result.tensors[name] = dense(delta)
            continue
        product, share = _factors(delta, rank, largest.get(name))
        if product is None:
            result.tensors[name] = dense(delta)
            if share < ENOUGH:
                result.refused[name] = (float(result.tensors[name].square().sum()), share)
        else:
            result.products[name] = product
            result.kept[name] = (_squared(product) / max(share, 1e-12), share)
    for name in [n for n in result.products if _bias(n) in result.tensors]:
        result.tensors[name] = result.products.pop(name).dense()
        del result.kept[name]
    return result


def _share(kept: Mapping[str, tuple[float, float]]) -> float:
    total = sum(norm for norm, _ in kept.values())
    return sum(norm * share for norm, share in kept.values()) / total if total else 1.0


def _factors(delta: Delta, rank: int | str, largest: int | None) -> tuple[LowRank | None, float]:
    """(LoRA or None for dense, share of the squared norm kept)."""
    if isinstance(delta, LowRank):
        if rank in ("full", "auto"):
            return delta.truncated()
        return delta.truncated(largest if rank == "largest" else int(rank))
    if rank == "full" or (largest is None and not isinstance(rank, int)):
        return None, 1.0
    wanted = rank if isinstance(rank, int) else largest
    product, share = best_of_rank(delta, wanted)
    return (product, share) if rank != "auto" or share >= ENOUGH else (None, share)


def _squared(product: LowRank) -> float:
    return float(((product.b.T @ product.b) * (product.a @ product.a.T)).sum())


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def linear_weights(model: Any) -> set[str]:
    """Weights of a model beside which a LoRA can stand."""
    return {name for name, _ in carriers(model)}


def attach_result(result: Result, model: Any, components: Components) -> AttachedPlan:
    """The merged adapter on a model, as its plan would be attached, with its values."""
    attached = attach(result_plan(result, components), model, components)
    give_memory(attached)
    parameters = attached.trainable()
    with torch.no_grad():
        for name, value in _values(result, model, parameters).items():
            parameters[name].copy_(value)
    return attached


def _values(result: Result, model: Any, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    values = dict(result.own)
    for name, product in result.products.items():
        target = name.removesuffix(".weight")
        values[f"{target}.lora_A.default.weight"] = product.a
        values[f"{target}.lora_B.default.weight"] = product.b / SCALE
    for name, delta in result.tensors.items():
        beside = f"{name.removesuffix('weight')}{DELTA}"
        if name.endswith(".weight") and beside in parameters:
            values[beside] = delta
        else:
            values[name] = parameters[name] + delta.to(parameters[name])
    return values


def result_plan(result: Result, components: Components) -> Plan:
    """LoRA, Dense and strategies of their own, by component."""
    parts: dict[str, list[Strategy]] = {}
    for component in PLANNED:
        parts[component] = list(result.strategies.get(component, []))
        names = [n for n in result.tensors if components.component_of(n) == component]
        if names:
            parts[component].append(Dense(names=tuple(names)))
        ranks = {
            n.removesuffix(".weight"): product.rank
            for n, product in result.products.items()
            if components.component_of(n) == component
        }
        if ranks:
            parts[component].append(_lora(ranks))
    return Plan(**{name: strategies or [Frozen()] for name, strategies in parts.items()})


def _lora(ranks: Mapping[str, int]) -> LoRA:
    usual = Counter(ranks.values()).most_common(1)[0][0]
    return LoRA(
        r=usual,
        alpha="auto",
        dropout=0.0,
        targets=tuple(ranks),
        rank_pattern={target: rank for target, rank in ranks.items() if rank != usual},
    )
