#!/usr/bin/env python3
"""Adapters of several tasks merged by every rule, scored on every task, beside one adapter trained on all.

    python scripts/merging.py --runs RUNS --data DATA --seeds 0 1 2    # writes results/merging/seed*.json

RUNS holds run folders TASK-seedN and multitask-seedN (`vlmpeft fit`), DATA the tasks' folders with val.json and
test.json (`vlmpeft data workbench TASK --out DATA/TASK`). Rules with knobs are scored with their defaults and with the knobs
of the best mean on val; test is looked at once a row.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from factorwise import cosine, peft_ties

from vlmpeft.adapters.loading import load_adapter
from vlmpeft.merging.merger import Merger, read_adapters
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.rule_table import RULES
from vlmpeft.merging.tuning import Judge, plain, search
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json
from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

TASKS = ("format", "paints", "stock")
LAM = (0.3, 0.6, 1.0)
DENSITY = (0.2, 0.8)
OUT = Path(__file__).parent.parent / "results/merging"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--val_items", type=int, default=100)
    args = parser.parse_args()
    declare_torchvision_ops()
    for seed in args.seeds:
        write_json(OUT / f"seed{seed}.json", one_seed(args, seed))
        print(f"seed {seed} written", flush=True)


def one_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Scores of the adapters, of their merges and of the multitask adapter."""
    folders = [args.runs / f"{task}-seed{seed}/adapter" for task in TASKS]
    merger = read_adapters(folders)
    test = Judge(merger, {t: str(args.data / t / "test.json") for t in TASKS})
    val = Judge(merger, {t: str(args.data / t / "val.json") for t in TASKS}, limit=args.val_items)
    rows = {"base": {"test": test.scores(None)}}
    for name, folder in [*zip(TASKS, folders, strict=True), ("multitask", _multi(args, seed))]:
        rows[name] = {"test": _of_adapter(folder, test)}
    rows |= {name: row for rule in RULES for name, row in _rule(rule, merger, val, test).items()}
    rows["PEFT's ties, on A and B"] = _peft_row(merger, test)
    return {
        "schema": 1,
        "seed": seed,
        "tasks": list(TASKS),
        "val_items": args.val_items,
        "base": merger.origin.to_dict(),
        "rows": rows,
        "conflicts": [vars(conflict) for conflict in merger.conflicts()],
        "versions": versions(),
    }


def _multi(args: argparse.Namespace, seed: int) -> Path:
    return args.runs / f"multitask-seed{seed}/adapter"


def _of_adapter(folder: Path, test: Judge) -> dict[str, float]:
    attached = load_adapter(folder, test.model, test.components)
    try:
        return test.scores(None)
    finally:
        attached.detach()


def _rule(name: str, merger: Merger, val: Judge, test: Judge) -> dict[str, Any]:
    """Rows of a rule with its defaults, and with knobs tuned on val."""
    rank = RULES[name].rank or "full"
    recipe = Recipe(name, rank=rank)
    try:
        fixed = merger.merge(recipe)
    except UserError as error:
        return {name: {"refused": str(error)}}
    rows = {name: {"knobs": _knobs(recipe), "energy": fixed.energy, "test": test.scores(fixed)}}
    grid = {"lam": LAM, "density": DENSITY}
    grid = {knob: values for knob, values in grid.items() if knob in RULES[name].knobs}
    if grid:
        chosen, tried = search(merger, recipe, grid, val.scores)
        scores = test.scores(merger.merge(chosen))
        rows[f"{name}, tuned"] = {"knobs": _knobs(chosen), "search": plain(tried), "test": scores}
    print(name, rows[name]["test"], rows.get(f"{name}, tuned", {}).get("test"), flush=True)
    return rows


def _peft_row(merger: Merger, test: Judge) -> dict[str, Any]:
    """PEFT's factor-wise ties on the language model beside the same projector as dW-TIES has."""
    ours = merger.merge(Recipe("ties", rank="full"))
    theirs = peft_ties(test.model, [o.deltas for o in merger.operands], density=0.2)
    similar = cosine(theirs, ours.tensors)
    ours.tensors |= theirs
    return {"cosine_to_ties": similar, "test": test.scores(ours)}


def _knobs(recipe: Recipe) -> dict[str, Any]:
    return {k: v for k, v in recipe.knobs("").items() if v is not None}


if __name__ == "__main__":
    main()
