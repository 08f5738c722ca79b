"""What one plot shows: the runs of one task on one base, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.study.report.info import Row
from vlmpeft.study.report.records import BASE_ROW, Study
from vlmpeft.study.report.run import Run

LOWER_IS_BETTER = ("loss", "perplexity", "numeric_error")


class NotDrawableError(ValueError):
    """The records lack what a plot needs; the message says what."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n values; the deviation of a single one is 0."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of the values that are finite; the mean of none is nan."""
        kept = np.array([value for value in values if np.isfinite(value)], float)
        sd = float(kept.std(ddof=1)) if len(kept) > 1 else 0.0
        return cls(float(kept.mean()) if len(kept) else float("nan"), sd, len(kept))


@dataclass(frozen=True)
class Unit:
    """How values of a metric are shown.

    Args:
        factor: a value times this is drawn.
        name: of the unit, for an axis.
    """

    factor: float
    name: str


@dataclass(frozen=True)
class RowRuns:
    """A row with its finished runs.

    Args:
        row: of the study.
        runs: by seed.
        position: of the row in the study, which decides its mark in every plot.
    """

    row: Row
    runs: tuple[Run, ...]
    position: int

    def spread(
        self, metric: str, split: str | None = None, state: str = "tuned", factor: float = 1.0
    ) -> Spread:
        """The scores over seeds, times a factor."""
        return Spread.of(factor * run.score(metric, split, state) for run in self.runs)

    @property
    def trainable(self) -> float:
        """Trained parameters; nan where the records have no number."""
        return Spread.of(float(run.record.get("trainable") or 0) for run in self.runs).mean


@dataclass(frozen=True)
class View:
    """The runs of one task on one base, and the metric that compares them."""

    study: Study
    task: str
    base: str
    metric: str

    @cached_property
    def rows(self) -> tuple[RowRuns, ...]:
        """Rows that have a finished run, in the order of the study; not the untouched base."""
        found = [
            RowRuns(row, tuple(self.study.of(row.name, self.task, self.base)), position)
            for position, row in enumerate(self.study.info.rows)
            if row.name != BASE_ROW
        ]
        return tuple(one for one in found if one.runs)

    @cached_property
    def split(self) -> str:
        """The split that is reported."""
        return self.rows[0].runs[0].split

    @cached_property
    def unit(self) -> Unit:
        """Percent for a metric between 0 and 1."""
        if self.metric.rpartition("/")[2] == "loss":
            return Unit(1.0, "nats per token")
        scores = [run.score(self.metric) for one in self.rows for run in one.runs]
        if self.is_lower_better or any(abs(score) > 1 for score in scores):
            return Unit(1.0, "")
        return Unit(100.0, "%")

    @property
    def is_lower_better(self) -> bool:
        return self.metric.partition("/")[0] in LOWER_IS_BETTER or self.metric.endswith("/loss")

    @property
    def title(self) -> str:
        """Of a plot."""
        return f"{self.task}: {self.study.info.title}"

    @property
    def axis(self) -> str:
        """Label of an axis of scores: metric, split, unit, and what a bar or a band is."""
        unit = f" ({self.unit.name})" if self.unit.name else ""
        return f"{self.metric.replace('_', ' ')}, {self.split}{unit}{self.seeds_note}"

    @property
    def seeds_note(self) -> str:
        """What a bar or a band is; nothing if every row has one seed."""
        numbers = sorted({len(one.runs) for one in self.rows})
        if numbers[-1] < 2:
            return ""
        shown = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        return f"; mean \N{PLUS-MINUS SIGN} sd of {shown} seeds"

    @cached_property
    def zero_shot(self) -> float:
        """The score of the untouched base, in the unit; nan if no record has one."""
        untouched = self.study.of(BASE_ROW, self.task, self.base)
        runs = untouched or [run for one in self.rows for run in one.runs]
        return Spread.of(self.unit.factor * r.score(self.metric, state="base") for r in runs).mean

    @cached_property
    def full(self) -> float:
        """The mean score of full fine-tuning, in the unit; nan if the study has no such row."""
        rows = [one for one in self.rows if one.row.name == self.study.info.full]
        return rows[0].spread(self.metric, factor=self.unit.factor).mean if rows else float("nan")

    def best(self, values: Iterable[float]) -> float:
        """The best of some values of the metric."""
        return min(values) if self.is_lower_better else max(values)


def views(study: Study, metric: str | None = None, tasks: Sequence[str] = ()) -> Iterator[View]:
    """One view a task and base that have finished runs, in the order of the study.

    Args:
        study: the records.
        metric: what rows are compared by; default each task's primary one.
        tasks: only these.

    Raises:
        UserError: there is no such task, or no run of it that has the metric.
    """
    for task in tasks:
        if task not in study.info.tasks:
            known = did_you_mean(task, study.info.tasks)
            raise UserError(f"study {study.info.name} has no task {task!r}.{known}")
    chosen = [task for task in study.info.tasks if task in tasks or not tasks]
    found = [_view(study, metric, task, base) for task in chosen for base in study.info.bases]
    yield from (view for view in found if view is not None and view.rows)


def _view(study: Study, metric: str | None, task: str, base: str) -> View | None:
    runs = [
        r for r in study.runs if (r.task, r.base) == (task, base) and r.row != BASE_ROW and r.split
    ]
    if not runs:
        return None
    scores = {name for run in runs for name in run.record["metrics"]["tuned"][run.split]}
    if metric is not None and metric not in scores:
        raise UserError(f"task {task} has no metric {metric!r}.{did_you_mean(metric, scores)}")
    return View(study, task, base, metric or runs[0].primary)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a variable's value can stand on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)
