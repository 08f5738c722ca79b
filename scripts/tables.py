#!/usr/bin/env python3
"""Write the tables of README.md and docs/results.md from the committed records.

python scripts/tables.py            # or: make tables
python scripts/tables.py --check    # exit 1 if a table is not what its records give
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: list[float]) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * sd:.1f}"


def tiny_table() -> str:
    """Held-out exact match of the embedded base, kind by kind."""
    scores = read("vlmpeft/assets/tiny/scores.json")
    return markdown(
        ["kind", "exact match"], [[kind, f"{value:.1%}"] for kind, value in scores.items()]
    )


def format_table() -> str:
    """Runs on the `format` task: one row a config, over its seeds."""
    runs = defaultdict(list)
    for path in sorted((ROOT / "results" / "format").glob("*-seed*.json")):
        runs[path.stem.rsplit("-seed", 1)[0]].append(json.loads(path.read_text()))
    if not runs:
        return "No record yet: `python benchmarks/fit.py`."
    rows = []
    for config, records in runs.items():
        base = [100 * r["metrics"]["base"]["test"]["exact_match"] for r in records]
        tuned = [r["metrics"]["tuned"]["test"]["exact_match"] for r in records]
        first = records[0]
        share = 100 * first["trainable"] / (first["total"] + _added(first))
        rows.append(
            [
                f"`{config}.yaml`",
                f"{first['trainable']:,}",
                f"{share:.2f}",
                f"{statistics.mean(base):.1f}",
                spread(tuned),
                str(len(records)),
            ]
        )
    return markdown(["config", "trainable", "%", "base", "tuned", "seeds"], rows)


def _added(record: dict) -> int:
    """Parameters the base did not have: all trainables but those of `Full`."""
    strategies = [s for c in record["components"].values() for s in c["strategies"]]
    return sum(s["trainable"] for s in strategies if s["name"] != "Full")


def step_table() -> str:
    """The training step beside the common recipe."""
    if not (ROOT / "results/benchmarks/step.json").is_file():
        return "No record yet: `python benchmarks/step.py`."
    return read("results/benchmarks/step.json")["table"]


TABLES = {"tiny": tiny_table, "format": format_table, "step": step_table}


def fill(text: str) -> str:
    """Replace what stands between `<!-- table:NAME -->` and `<!-- end -->`."""

    def table(match: re.Match) -> str:
        return f"<!-- table:{match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table:(\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> int:
    stale = []
    for name in ("README.md", "docs/results.md"):
        path = ROOT / name
        if not path.is_file():
            continue
        new = fill(path.read_text())
        if new != path.read_text():
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(new)
    print("stale: " + ", ".join(stale) if stale else "tables are what their records give")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
