"""The table of the workbench's tasks, from the records that tests/data/test_workbench_gates.py leaves."""

from __future__ import annotations

import json
from pathlib import Path

from matrices import markdown

RECORDS = Path(__file__).parent.parent / "results" / "workbench"
COLUMNS = (
    "task",
    "steps",
    "seconds",
    "base",
    "tuned",
    "blank pictures",
    "language prior",
    "source, before",
    "source, after",
)


def workbench_table() -> str:
    """Full fine-tuning on each task: exact match in percent, beside what can be had without looking."""
    return markdown([*COLUMNS], [_row(path) for path in sorted(RECORDS.glob("*.json"))])


def _row(path: Path) -> list[str]:
    record = json.loads(path.read_text())
    before, after = (record["metrics"][state] for state in ("base", "tuned"))
    scores = (
        before["test"]["exact_match"],
        after["test"]["exact_match"],
        record["controls"]["blank"]["exact_match"],
        record["language_prior"],
        before["retention"]["exact_match"],
        after["retention"]["exact_match"],
    )
    task = record["task"].removeprefix("workbench:")
    measured = [f"{100 * score:.1f}" for score in scores]
    return [f"`{task}`", f"{record['steps']:,}", f"{record['seconds']['fit']:.0f}", *measured]
