"""Runs of a study: how many, how long, which failed, which records they left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from vlmpeft.study.report import numerals
from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.document import Listing, Part
from vlmpeft.study.report.entries import error_of, seed_name
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.table import text_table

_DIGITS = 12  # of a hash


def budget(contents: Contents) -> Iterator[Part]:
    """Runs and hours of every row, of the search and of what is reported."""
    study, lines = contents.study, []
    for row in contents.rows:
        for kind, done, failed in (
            ("reported", study.runs, study.failed),
            ("search", study.searched, study.search_failed),
        ):
            mine = [run for run in done if run.row == row.name]
            lost = [run for run in failed if run.row == row.name]
            if mine or lost:
                hours = _hours([*mine, *lost])
                lines.append([row.title, kind, str(len(mine)), str(len(lost)), hours])
    everything = (*study.runs, *study.searched, *study.failed, *study.search_failed)
    lost = len(study.failed) + len(study.search_failed)
    lines.append(["all", "", str(len(everything) - lost), str(lost), _hours(everything)])
    yield text_table(
        ["row", "", "runs", "failed", "hours"],
        lines,
        notes=[
            "Hours are those of loading, training and scoring that the records have; a failed run that recorded none counts as 0."
        ],
        numbers=["runs", "failed", "hours"],
    )


def _hours(runs: Sequence[Run]) -> str:
    seconds = sum(sum((run.record.get("seconds") or {}).values()) for run in runs)
    return numerals.fixed(seconds / 3600, 3)


def failures(contents: Contents) -> Iterator[Part]:
    """Every failed run with its error."""
    found = sorted(contents.study.failed, key=lambda run: run.folder.as_posix())
    lines = [f"{run.row} on {run.task}, {seed_name(run)}: {error_of(run)}" for run in found]  # fmt: skip
    if lines:
        yield Listing("\n".join(lines))


def records(contents: Contents) -> Iterator[Part]:
    """The records that everything was computed from, with their hashes."""
    study = contents.study
    lines = []
    for run in sorted((*study.runs, *study.failed), key=lambda run: run.folder.as_posix()):
        digest = hashlib.sha256((run.folder / "result.json").read_bytes()).hexdigest()[:_DIGITS]
        lines.append(f"{digest}  {run.folder.relative_to(study.folder).as_posix()}")
    yield Listing("\n".join(lines))
