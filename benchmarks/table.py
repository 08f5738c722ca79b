"""How long `table` and `plot` take over 1,000 records, as whole commands on one core: seconds of CPU, and by the clock.

The commands have one thread and wait for nothing but files, so that a clock on an idle machine says what the CPU seconds say; on a busy one
only these can be compared.

python benchmarks/table.py    # the best of three each; writes results/benchmarks/table.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cli import seconds

from vlmpeft.__main__ import VERBS
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_items, write_json

ROWS, SEEDS, ITEMS, STEPS = 100, 10, 400, 200
MOST_SECONDS = 5.0
TEMPLATE = Path("results/format/lora_r16-seed0.json")  # a record of the usual size


def write_study(folder: Path) -> None:
    """A study of ROWS rows on one task, each with SEEDS finished runs of ITEMS items."""
    rows = [f"row{number:03d}" for number in range(ROWS)]
    info = {"name": "synthetic", "title": "Synthetic", "tasks": ["format"], "bases": ["tiny"]}
    info |= {"seeds": list(range(SEEDS)), "reference": rows[0], "full": rows[-1], "schema": 1}
    variables = [{"r": 2 ** (n % 8), "targets": f"t{n // 8}"} for n in range(ROWS)]
    info["rows"] = [
        {"name": row, "title": row, "variables": v} for row, v in zip(rows, variables, strict=True)
    ]
    write_json(folder / "study.json", info)
    template = json.loads(TEMPLATE.read_text())
    for number, row in enumerate(rows):
        for seed in range(SEEDS):
            run = folder / "runs" / "tiny" / "format" / row / f"seed{seed}"
            write_run(run, template, row, seed, number)


def write_run(folder: Path, template: dict[str, Any], row: str, seed: int, number: int) -> None:
    """Record, items and losses of one run; rows become better with their number."""
    generator = np.random.default_rng((number, seed))
    scores = generator.random(ITEMS) < 0.5 + 0.4 * number / ROWS
    write_items(folder / "items.jsonl.gz", (item(n, s, generator) for n, s in enumerate(scores)))
    tuned = {"exact_match": float(scores.mean()), "token_f1": float(scores.mean()), "loss": 0.5}
    names = {"study": "synthetic", "row": row, "task": "format", "base_name": "tiny", "seed": seed}
    metrics = {"base": template["metrics"]["base"], "tuned": {"val": tuned, "test": tuned}}
    write_json(folder / "result.json", template | names | {"metrics": metrics})
    losses = 9 * np.exp(-np.arange(STEPS) / 40) + generator.random(STEPS)
    lines = [f"{step},train/loss,{loss!r}" for step, loss in enumerate(losses.tolist())]
    (folder / "metrics.csv").write_text("\n".join(["step,name,value", *lines, ""]))


def item(number: int, is_right: bool, generator: np.random.Generator) -> dict[str, Any]:
    """An item as the workbench's are, four to a picture."""
    right = '{"bay": "A2", "item": "hex", "paint": "crimson"}'
    return {
        "id": f"format-test-{number}",
        "fields": {"kind": "part"},
        "image": [f"images/test-{number // 4}.png"],
        "prompt": "the part at the top right as json: house style.",
        "expected": right,
        "generated": right if is_right else '{"bay": "A2", "item": "slab", "paint": "amber"}',
        "finish_reason": "stop",
        "token_log_probabilities": np.round(-generator.random(15), 5).tolist(),
        "loss": float(generator.random()),
        "tokens": 15,
        "scores": {"exact_match": float(is_right), "token_f1": float(is_right)},
    }


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    with tempfile.TemporaryDirectory() as scratch:
        study = Path(scratch) / "synthetic"
        write_study(study)
        commands = {"table": ["table", str(study), "--format", "md", "--out", f"{scratch}/t.md"]}
        if "plot" in VERBS:
            commands["plot"] = ["plot", str(study), "--out", f"{scratch}/plots"]
        took = {verb: seconds(["-m", "vlmpeft", *args]) for verb, args in commands.items()}
        is_written = (Path(scratch) / "t.md").is_file()
    table = "\n".join(
        ["| verb | records | CPU seconds | by the clock | target |", "|---|---|---|---|---|"]
        + [
            f"| `{verb}` | {ROWS * SEEDS:,} | {s['cpu']:.1f} | {s['wall']:.1f} | {MOST_SECONDS:g} |"
            for verb, s in took.items()
        ]
    )
    print(table)
    record = {"seconds": took, "target": MOST_SECONDS, "table": table, "versions": versions()}
    record |= {"rows": ROWS, "seeds": SEEDS, "items": ITEMS}
    write_json(Path("results/benchmarks/table.json"), record)
    return 0 if is_written and all(s["cpu"] <= MOST_SECONDS for s in took.values()) else 4


if __name__ == "__main__":
    sys.exit(main())
