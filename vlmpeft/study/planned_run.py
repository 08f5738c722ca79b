"""The runs of a study: each is a command of `fit` and a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmpeft.study.cells import Cell
from vlmpeft.study.report.records import RUNS, SEARCH
from vlmpeft.study.spec import Search


@dataclass(frozen=True)
class Candidate:
    """Settings that a search tries.

    Args:
        label: as a folder name, e.g. learning_rate=0.001.
        settings: dotted key -> value, as a record shows them.
        args: the same as arguments of `fit`.
    """

    label: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedRun:
    """One fit of a study.

    Args:
        cell: row, task, base.
        seed: of the run.
        candidate: settings beside the cell's.
        on: of a run of the search, the split that decides; None is a run that tables report.
        steps: of a run of the search, its optimizer steps; None is as many as the cell says.
    """

    cell: Cell
    seed: int
    candidate: Candidate = Candidate()
    on: str | None = None
    steps: int | None = None

    @property
    def is_search(self) -> bool:
        return self.on is not None

    @property
    def name(self) -> str:
        """Its folder below the study's."""
        cell = f"{self.cell.base}/{self.cell.task}/{self.cell.row}"
        if self.is_search:
            return f"{SEARCH}/{cell}/{self.candidate.label}/seed{self.seed}"
        return f"{RUNS}/{cell}/seed{self.seed}"

    @property
    def args(self) -> tuple[str, ...]:
        """Arguments of `python -m vlmpeft fit`, without the run folder."""
        more = [f"--seed_everything={self.seed}"]
        if self.is_search:
            more.append(f"--eval.splits=[{self.on}]")
            more.append("--eval.controls=[]")
        if self.steps:
            more += [f"--trainer.max_steps={self.steps}", "--trainer.max_epochs=-1"]
        return (*self.cell.args, *self.candidate.args, *more)


def search_runs(
    cell: Cell, candidates: Sequence[Candidate], search: Search | None
) -> Iterator[PlannedRun]:
    """The runs that choose a cell's settings; none if they are taken as they are."""
    if search is None or not cell.search:
        return
    for candidate in candidates:
        for seed in search.seeds:
            yield PlannedRun(cell, seed, candidate, search.on, search.steps)


def reported_runs(cell: Cell, candidate: Candidate = Candidate()) -> Iterator[PlannedRun]:
    """The runs of a cell that tables report, one a seed."""
    for seed in cell.seeds:
        yield PlannedRun(cell, seed, candidate)
