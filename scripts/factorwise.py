"""PEFT's own `ties` of LoRA adapters, which works on A and B separately, as dW to compare with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlmpeft.strategies.low_rank import Delta, LowRank, dense


def peft_ties(
    model: Any, parts: Sequence[Mapping[str, Delta]], density: float
) -> dict[str, torch.Tensor]:
    """Weight -> dW of PEFT's `add_weighted_adapter(combination_type="ties")` with weights 1.

    Args:
        model: the base; a copy of it is wrapped.
        parts: of each adapter, weight -> its product; what is no product is left out.
        density: of ties.
    """
    from peft import LoraConfig, get_peft_model

    products = [{n: d for n, d in part.items() if isinstance(d, LowRank)} for part in parts]
    rank = max(product.rank for product in products[0].values())
    targets = [name.removesuffix(".weight") for name in products[0]]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    wrapped: Any = get_peft_model(copy.deepcopy(model), config, adapter_name="a0")
    names = [f"a{i}" for i in range(len(parts))]
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    with torch.no_grad():
        for name, product in zip(names, products, strict=True):
            for weight, factors in product.items():
                layer = wrapped.base_model.model.get_submodule(weight.removesuffix(".weight"))
                layer.lora_A[name].weight.copy_(factors.a)
                layer.lora_B[name].weight.copy_(factors.b)
    wrapped.add_weighted_adapter(
        names, [1.0] * len(names), "merged", combination_type="ties", density=density
    )
    found = {}
    for target in targets:
        layer = wrapped.base_model.model.get_submodule(target)
        b, a = layer.lora_B["merged"].weight, layer.lora_A["merged"].weight
        found[f"{target}.weight"] = layer.scaling["merged"] * (b @ a).detach()
    return found


def cosine(first: Mapping[str, Delta], second: Mapping[str, Delta]) -> float:
    """Of two sets of dW over the names of the first."""
    a, b = (torch.cat([dense(x[name]).flatten() for name in first]) for x in (first, second))
    return float(a @ b / (a.norm() * b.norm()))
