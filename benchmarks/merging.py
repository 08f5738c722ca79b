"""Merging in dW beside PEFT's `add_weighted_adapter`.

    python benchmarks/merging.py    # CPU, 4 GB, some minutes; writes results/benchmarks/merging.json

Four rank-16 adapters over 28 linear layers of 1024 x 1024, random factors, merged to rank 64, the arms in turn:
- svd: the weighted sum by QR-SVD beside PEFT's combination_type svd. Void unless both are within 1e-5 of the sum in fp64.
- ties: TIES on dW with a threshold a tensor and equal weights, where PEFT's ties_svd is the same rule. Void unless the reconstruction errors differ by
  less than 1 % at the same output rank.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmpeft.merging.engine import merge
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.result import shape_result
from vlmpeft.merging.sparse import ties
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json
from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops
from vlmpeft.strategies.low_rank import LowRank, dense

LAYERS, WIDTH, RANK, ADAPTERS, OUT_RANK = 28, 1024, 16, 4, 64
WEIGHTS = (1.0, 0.5, 0.7, 0.9)
EQUAL = (1.0,) * ADAPTERS
OUT = Path(__file__).parent.parent / "results/benchmarks/merging.json"


def peft_model(layers: int) -> Any:
    """A stack of linear layers with four adapters whose B is not zero."""
    from peft import LoraConfig, get_peft_model

    stack = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    targets = [str(i) for i in range(layers)]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets)
    model: Any = get_peft_model(stack, config, adapter_name="a0")
    for i in range(1, ADAPTERS):
        model.add_adapter(f"a{i}", config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def products(model: Any) -> list[dict[str, LowRank]]:
    """The same adapters as dW."""
    parts: list[dict[str, LowRank]] = [{} for _ in range(ADAPTERS)]
    for name, layer in model.base_model.model.named_children():
        for i, part in enumerate(parts):
            b, a = layer.lora_B[f"a{i}"].weight, layer.lora_A[f"a{i}"].weight
            part[f"{name}.weight"] = LowRank(layer.scaling[f"a{i}"] * b.detach(), a.detach())
    return parts


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def ours(parts: list[dict[str, LowRank]], recipe: Recipe) -> dict[str, LowRank]:
    names = list(parts[0])
    merged = merge(parts, recipe, lambda _: "language")
    return shape_result(merged, recipe.final_rank, dict.fromkeys(names, RANK), names).products


def theirs(
    model: Any, kind: str, name: str, weights: tuple[float, ...] = WEIGHTS, **knobs: Any
) -> dict[str, LowRank]:
    adapters = [f"a{i}" for i in range(ADAPTERS)]
    model.add_weighted_adapter(
        adapters, list(weights), name, combination_type=kind, svd_rank=OUT_RANK, **knobs
    )
    found = {}
    for layer_name, layer in model.base_model.model.named_children():
        b, a = layer.lora_B[name].weight.detach(), layer.lora_A[name].weight.detach()
        found[f"{layer_name}.weight"] = LowRank(layer.scaling[name] * b, a)
    model.delete_adapter(name)
    return found


def error(found: dict[str, LowRank], wanted: dict[str, torch.Tensor]) -> float:
    """Relative Frobenius distance over all layers, in fp64."""
    off = sum(
        float((f.b.double() @ f.a.double() - wanted[n]).square().sum()) for n, f in found.items()
    )
    return (off / sum(float(w.square().sum()) for w in wanted.values())) ** 0.5


def exact(parts: list[dict[str, LowRank]]) -> dict[str, torch.Tensor]:
    return {
        n: sum(w * (p[n].b.double() @ p[n].a.double()) for w, p in zip(WEIGHTS, parts, strict=True))
        for n in parts[0]
    }  # type: ignore[misc]


def ties_dense(parts: list[dict[str, LowRank]], density: float) -> dict[str, torch.Tensor]:
    """The dense result both arms truncate."""
    return {
        n: ties(torch.stack([dense(p[n]).flatten() for p in parts]), EQUAL, density)
        .view(WIDTH, WIDTH)
        .double()
        for n in parts[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peft_rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=LAYERS)
    args = parser.parse_args()
    declare_torchvision_ops()
    torch.manual_seed(0)
    model = peft_model(args.layers)
    parts = products(model)
    record = {"layers": args.layers, "width": WIDTH, "rank": RANK, "adapters": ADAPTERS}
    record |= {"out_rank": OUT_RANK, "threads": torch.get_num_threads(), "versions": versions()}
    record["svd"] = svd_row(model, parts, args)
    print(record["svd"], flush=True)
    record["ties"] = ties_row(model, parts, args)
    print(record["ties"], flush=True)
    write_json(OUT, record)


def compare(
    mine: Callable[[], Any], peft: Callable[[], Any], args: argparse.Namespace
) -> tuple[dict[str, float], Any, Any]:
    """Seconds of both in turn: medians, and the ratio."""
    ours_s, peft_s, a, b = [], [], None, None
    mine()
    for i in range(max(args.rounds, args.peft_rounds)):
        if i < args.peft_rounds:
            seconds, b = timed(peft)
            peft_s.append(seconds)
        if i < args.rounds:
            seconds, a = timed(mine)
            ours_s.append(seconds)
    ratios = [p / o for p in peft_s for o in ours_s]
    row = {
        "seconds": statistics.median(ours_s),
        "seconds_peft": statistics.median(peft_s),
        "times_faster": statistics.median(ratios),
        "times_faster_low": min(ratios),
        "times_faster_high": max(ratios),
    }
    return row, a, b


def svd_row(model: Any, parts: Any, args: argparse.Namespace) -> dict[str, Any]:
    recipe = Recipe("svd", weights=WEIGHTS, rank=OUT_RANK)
    row, a, b = compare(lambda: ours(parts, recipe), lambda: theirs(model, "svd", "m"), args)
    wanted = exact(parts)
    errors = {"error": error(a, wanted), "error_peft": error(b, wanted)}
    return row | errors | {"void": max(errors.values()) > 1e-5}


def ties_row(model: Any, parts: Any, args: argparse.Namespace) -> dict[str, Any]:
    recipe = Recipe("ties", weights=EQUAL, density=0.2, scope="tensor", rank=OUT_RANK)
    row, a, b = compare(
        lambda: ours(parts, recipe),
        lambda: theirs(model, "ties_svd", "m", EQUAL, density=0.2),
        args,
    )
    wanted = ties_dense(parts, 0.2)
    errors = {"error": error(a, wanted), "error_peft": error(b, wanted)}
    return row | errors | {"void": abs(errors["error"] / errors["error_peft"] - 1) > 0.01}


if __name__ == "__main__":
    main()
