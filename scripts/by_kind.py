#!/usr/bin/env python3
"""Scores of finished runs by the `kind` of each item, beside always giving the kind's commonest answer.

python scripts/by_kind.py runs/A runs/B
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path

from vlmpeft.runtime.records import read_items


def rows(run_dir: Path, metric: str) -> list[tuple[str, int, float, float]]:
    """(kind, items, score, share of the commonest answer), kinds in alphabetical order."""
    kinds = defaultdict(list)
    for item in read_items(run_dir / "items.jsonl.gz"):
        kinds[item["fields"].get("kind", "-")].append(item)
    return [
        (
            kind,
            len(items),
            sum(item["scores"][metric] for item in items) / len(items),
            Counter(item["expected"] for item in items).most_common(1)[0][1] / len(items),
        )
        for kind, items in sorted(kinds.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--metric", default="exact_match")
    args = parser.parse_args()
    print(f"| run | kind | items | {args.metric} | commonest answer |\n|---|---|---|---|---|")
    for run_dir in args.runs:
        for kind, number, score, commonest in rows(run_dir, args.metric):
            print(f"| {run_dir.name} | {kind} | {number} | {score:.3f} | {commonest:.3f} |")


if __name__ == "__main__":
    main()
