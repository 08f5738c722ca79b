"""The records of a study, or of any folder of run folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import read_record
from vlmpeft.study.report.info import STUDY_FILE, Row, StudyInfo, read_info
from vlmpeft.study.report.record_shape import check_record
from vlmpeft.study.report.run import Run

RUNS, SEARCH = "runs", "search"
BASE_ROW = "base"  # the row of the untouched base: zero-shot


@dataclass(frozen=True)
class Study:
    """A study's folder.

    Args:
        folder: where it is.
        info: what it is made of.
        runs: finished runs.
        failed: runs that ended in an error.
        damaged: records that cannot be read, with the reason.
        searched: finished runs of the search for settings.
        search_failed: runs of the search that ended in an error.
    """

    folder: Path
    info: StudyInfo
    runs: tuple[Run, ...]
    failed: tuple[Run, ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()
    searched: tuple[Run, ...] = ()
    search_failed: tuple[Run, ...] = ()

    def of(self, row: str, task: str | None = None, base: str | None = None) -> list[Run]:
        """The finished runs of a row, by seed."""
        found = [
            run
            for run in self.runs
            if run.row == row and task in (None, run.task) and base in (None, run.base)
        ]
        return sorted(found, key=lambda run: run.seed or 0)


def read_study(folder: Path | str) -> Study:
    """The records of a study, or of any folder of run folders.

    Args:
        folder: `results/<study>/`, or a folder of run folders such as `runs/`.

    Raises:
        UserError: it is not there, or holds no record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"study {folder} is not a folder; give results/NAME")
    runs, damaged = _read_runs(folder / RUNS if (folder / RUNS).is_dir() else folder)
    searched, _ = _read_runs(folder / SEARCH)
    done = tuple(run for run in runs if run.is_done)
    if not runs and not damaged:
        raise UserError(
            f"study {folder} has no record yet; python -m vlmpeft sweep STUDY.yaml makes them"
        )
    info = (
        read_info(folder)
        if (folder / STUDY_FILE).is_file()
        else _info_of(folder.resolve().name, runs)
    )
    failed = tuple(run for run in runs if not run.is_done)
    return Study(
        folder,
        info,
        done,
        failed,
        tuple(damaged),
        tuple(run for run in searched if run.is_done),
        tuple(run for run in searched if not run.is_done),
    )


def _read_runs(folder: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    runs, damaged = [], []
    for path in sorted(folder.rglob("result.json")) if folder.is_dir() else ():
        try:
            record = read_record(path.parent)
            if record and record["status"] == "done":
                check_record(record, path)
        except UserError as error:
            damaged.append((path, str(error)))
            continue
        if record:
            runs.append(Run(path.parent, record))
    return runs, damaged


def _info_of(name: str, runs: Iterable[Run]) -> StudyInfo:
    """What there is in a folder of runs that no study made."""
    runs = list(runs)
    rows = tuple(Row(row, row) for row in dict.fromkeys(run.row for run in runs) if row != BASE_ROW)
    tasks = tuple(dict.fromkeys(run.task for run in runs))
    bases = tuple(dict.fromkeys(run.base for run in runs))
    return StudyInfo(name, name, rows, tasks, bases, tuple(sorted({run.seed or 0 for run in runs})))
