"""What a merged model costs beside the base it was merged into: nothing, if no adapter is left in it.

    python benchmarks/merged_step.py    # CPU, 3 GB, 3 minutes; writes results/benchmarks/merged_step.json

One random LLaVA of real proportions is saved and a LoRA (r 16, random factors, every linear layer of the language model)
merged into its files by `merge --to merged`. The arms take turns, batch by batch, with the no-grad forward of scoring:
- base: as saved, loaded by transformers.
- merged: what was written, loaded by transformers. Void unless it has the base's modules and the attached arm's logits.
- attached: the LoRA on the base.
Ratios are medians over the rounds with bootstrap intervals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from step import build_loader, build_model
from strategies import interval, structure
from transformers import AutoModelForImageTextToText

from vlmpeft import LoRA, Plan, attach
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base, load_processor
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.evaluation.token_loss import supervised_logits
from vlmpeft.export.merge_into_checkpoint import WholeMerge
from vlmpeft.merging.merger import read_adapters
from vlmpeft.merging.recipe import Recipe
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json

TOLERANCE = 1e-3  # of logits of some units
FP32 = Bits("fp32", "fp32", "fp32")


def arms(folder: Path) -> dict[str, Any]:
    """Arm -> model."""
    base, adapter, merged = (folder / name for name in ("base", "adapter", "merged"))
    processor = load_processor(BaseSpec())
    build_model().save_pretrained(base)
    processor.save_pretrained(base)
    spec = BaseSpec(str(base), FP32)
    model, _, components = load_base(spec)
    attached = attach(Plan(language=LoRA(r=16)), model, components)
    with torch.no_grad():
        for parameter in attached.trainable().values():
            parameter.normal_(std=0.02)
    save_adapter(adapter, attached, processor=processor, base=origin(spec))
    merger = read_adapters([adapter])
    WholeMerge(merger, Recipe("linear"), "weights").write(merged, {})
    alone, whole = (
        AutoModelForImageTextToText.from_pretrained(path).eval() for path in (base, merged)
    )
    return {"base": alone, "merged": whole, "attached": model.eval()}


@torch.no_grad()
def step(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    """(seconds, logits) of a forward."""
    start = time.perf_counter()
    logits, _ = supervised_logits(model, batch)
    return time.perf_counter() - start, logits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/merged_step.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = arms(Path(folder))
    same = structure(models["base"]) == structure(models["merged"])
    order, seconds, off, effect = list(models), {name: [] for name in models}, 0.0, 0.0
    for number, batch in enumerate(build_loader(args.rounds + 1)):
        logits = {}
        for name in order[number % 3 :] + order[: number % 3]:
            took, logits[name] = step(models[name], batch)
            seconds[name].append(took)
        off = max(off, (logits["merged"] - logits["attached"]).abs().max().item())
        effect = max(effect, (logits["base"] - logits["attached"]).abs().max().item())
    passed = same and off < TOLERANCE < effect
    record = {"same_modules_as_base": same, "max_logit": off, "effect": effect, "void": not passed}
    for name in ("merged", "attached"):
        pairs = zip(seconds[name][1:], seconds["base"][1:], strict=True)
        median, low, high = interval([a / b for a, b in pairs])
        record[f"{name} / base"] = {"median": median, "interval": [low, high]}
    threads = torch.get_num_threads()
    record |= {"rounds": args.rounds, "threads": threads, "versions": versions()}
    write_json(args.output, record)
    print(record)
    return 0 if passed else 4


if __name__ == "__main__":
    sys.exit(main())
