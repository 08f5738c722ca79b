"""What one row of a study did on one task, with everything that a column may show of it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from vlmpeft.study.report.info import STUDY_FILE, Row
from vlmpeft.study.report.records import BASE_ROW, Study
from vlmpeft.study.report.run import Run

if TYPE_CHECKING:
    from vlmpeft.study.report.statistics import Comparison

ZERO_SHOT = Row(BASE_ROW, "zero-shot")
NO_SHARES = ("loss", "perplexity", "numeric_error", "cider_d")  # not between 0 and 1
_OF_ERRORS = 300  # characters that a footnote has of an error


@dataclass(frozen=True)
class Block:
    """What a score is of: a base, a task, a metric."""

    base: str
    task: str
    metric: str


@dataclass(frozen=True)
class Entry:
    """One row in one block.

    Args:
        row: of the study.
        block: what its scores are of.
        runs: finished ones, by seed.
        failed: ones that ended in an error.
        expected: number of seeds that the study has; 0 if that is not known.
        is_reference: whether the others are compared with this one.
        comparison: with the reference, where there are items of both.
        full: mean score of full fine-tuning.
        is_share: whether scores are between 0 and 1 and shown in percent.
    """

    row: Row
    block: Block
    runs: tuple[Run, ...]
    failed: tuple[Run, ...] = ()
    expected: int = 0
    is_reference: bool = False
    comparison: Comparison | None = None
    full: float = math.nan
    is_share: bool = True

    @property
    def is_base(self) -> bool:
        return self.row.name == BASE_ROW

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why there are fewer scores than seeds."""
        if reason := illegal_reason(self.row, self.block):
            return (reason,)
        return tuple(f"{seed_name(run)} failed: {error_of(run)}" for run in self.failed)

    def scores(
        self, metric: str | None = None, split: str | None = None, state: str = "tuned"
    ) -> list[float]:
        """A score of each run that has it."""
        found = (run.score(metric or self.block.metric, split, state) for run in self.runs)
        return [value for value in found if not math.isnan(value)]


@dataclass
class Index:
    """The runs of a study by row, task and base."""

    study: Study
    runs: dict[tuple[str, str, str], list[Run]] = field(init=False)
    failed: dict[tuple[str, str, str], list[Run]] = field(init=False)
    _shares: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runs = _by_place(self.study.runs)
        self.failed = _by_place(self.study.failed)

    @cached_property
    def expected(self) -> int:
        """Seeds that a study has; 0 of a folder of runs that no study made."""
        is_study = (self.study.folder / STUDY_FILE).is_file()
        return len(self.study.info.seeds) if is_study else 0

    def entry(self, row: Row, block: Block) -> Entry:
        """The row in a block, without what other rows did there."""
        place = (row.name, block.task, block.base)
        runs = self.runs.get(place, [])
        if row.name == BASE_ROW and not runs:
            runs = self._untouched(block)
        expected = 0 if row.name == BASE_ROW else self.expected
        failed = tuple(self.failed.get(place, ()))
        is_share = self.is_share(block.metric)
        return Entry(row, block, tuple(runs), failed, expected, is_share=is_share)

    def of_block(self, task: str, base: str) -> list[Run]:
        """Every finished run on a task and a base."""
        return [
            run
            for (_, on, of), runs in self.runs.items()
            if (on, of) == (task, base)
            for run in runs
        ]

    def is_share(self, metric: str) -> bool:
        """Whether every value of a metric is between 0 and 1, and not only by chance."""
        if metric not in self._shares:
            self._shares[metric] = self._find_out_whether_share(metric)
        return self._shares[metric]

    def _find_out_whether_share(self, metric: str) -> bool:
        if metric.rpartition("/")[2] in NO_SHARES or metric in NO_SHARES:
            return False
        corrected = metric.endswith("_chance_corrected")  # below 0 is below chance
        values = [run.score(metric, state=s) for run in self.study.runs for s in ("base", "tuned")]
        return all(v <= 1 and (v >= 0 or corrected) for v in values if not math.isnan(v))

    def _untouched(self, block: Block) -> list[Run]:
        """The base as a run, from what each run scored before it began."""
        runs = self.of_block(block.task, block.base)
        scored = (run for run in runs if not math.isnan(run.score(block.metric, state="base")))
        return [_as_base(run) for run in list(scored)[:1]]


def illegal_reason(row: Row, block: Block) -> str | None:
    """Why a row cannot be run in a block; None if it can."""
    return next((row.illegal[k] for k in ("", block.task, block.base) if k in row.illegal), None)


def seed_name(run: Run) -> str:
    """How a note names a run of a row."""
    return f"seed {run.seed}" if run.seed is not None else run.folder.name


def _by_place(runs: Iterable[Run]) -> dict[tuple[str, str, str], list[Run]]:
    found = defaultdict(list)
    for run in runs:
        found[run.row, run.task, run.base].append(run)
    return {place: sorted(of, key=_order) for place, of in found.items()}


def _order(run: Run) -> tuple[int, str]:
    return (-1 if run.seed is None else run.seed, run.folder.as_posix())


def _as_base(run: Run) -> Run:
    """The untouched base of a run, as a study keeps it."""
    kept = {key: run.record.get(key) for key in ("schema", "status", "task", "base", "base_name")}
    kept |= {key: run.record.get(key) for key in ("data", "primary", "total", "versions", "device")}
    scores = run.record["metrics"].get("base", {})
    return Run(run.folder, kept | {"row": BASE_ROW, "trainable": 0, "metrics": {"tuned": scores}})


def without_folders(text: object) -> str:
    """Text on one line, of absolute paths the last part: where a study was made is nobody's business.

    >>> without_folders("no file /home/me/data/a.json, see https://x.org/y")
    'no file a.json, see https://x.org/y'
    """
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+", "", " ".join(str(text).split()))


def error_of(run: Run) -> str:
    """Why a run failed, on one line."""
    text = without_folders(run.record.get("error") or "no reason was recorded")
    return text if len(text) <= _OF_ERRORS else text[: _OF_ERRORS - 3] + "..."


def means(entries: Sequence[Entry]) -> list[float]:
    """The mean score of each entry that has one."""
    scores = [entry.scores() for entry in entries]
    return [sum(values) / len(values) for values in scores if values]
