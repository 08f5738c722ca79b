"""Makes every run of a study that is not made yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlmpeft.runtime.errors import Interrupted, UserError
from vlmpeft.runtime.records import SCHEMA, write_json
from vlmpeft.study.cells import Cell
from vlmpeft.study.choosing import Tried, choose, search_record
from vlmpeft.study.claims import Claims
from vlmpeft.study.order import Make, Order
from vlmpeft.study.planned_run import Candidate, PlannedRun, reported_runs
from vlmpeft.study.records_on_disk import Accept, RecordsOnDisk
from vlmpeft.study.report.records import BASE_ROW, RUNS
from vlmpeft.study.worker import Worker

POLL_SECONDS = 1.0
WAITING = "waiting for runs that are made elsewhere"


class View(Protocol):
    """What a study shows while it runs."""

    def started(self, run: PlannedRun) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Outcome:
    """What a call of `sweep` did."""

    made: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SearchRuns:
    """How the search of every cell is run.

    Args:
        candidates_of: a cell -> what is tried.
        seeds: of each try.
        steps: of each try; None is as many as of a run.
        on: the split that decides.
    """

    candidates_of: Callable[[Cell], Sequence[Candidate]]
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    on: str = "val"


class Runner:
    """Makes the runs of some cells, beside any number of other processes that do the same.

    Args:
        study: name of the study, for its records.
        folder: `results/<study>/`.
        cells: those that can be run.
        worker: knows what a run would be, and makes it in this process.
        search: how settings are searched for; None takes them as they are.
        accept: what is done with records of other settings.
        view: what is shown.
        make: makes a run; default the worker.
    """

    def __init__(
        self,
        study: str,
        folder: Path,
        cells: Sequence[Cell],
        worker: Worker,
        search: SearchRuns | None,
        accept: Accept,
        view: View,
        make: Make | None = None,
    ):
        self.study, self.folder, self.cells = study, folder, list(cells)
        self.worker, self.search, self.view = worker, search, view
        self.make: Make = make or worker.complete
        self.claims = Claims(folder / "claims")
        self.records = RecordsOnDisk(folder, worker, accept, time.time(), view.note)
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Make what is missing, until nothing is; a run that another process works on is waited for.

        Raises:
            UserError: the data of a task cannot be used; a finished record has other settings than the study.
            Interrupted: a signal asked for it; what was begun can be resumed.
        """
        self.read_data()
        for run in self._known_runs():
            self.records.check(run)
        while self._pass():
            self.view.note(WAITING)
            time.sleep(POLL_SECONDS)
        return self.outcome

    def make_all(self, runs: Sequence[PlannedRun]) -> None:
        """Make some runs that no table reports; those that another process works on are waited for.

        Raises:
            UserError: a finished record has other settings.
            Interrupted: see `run`.
        """
        while sum(not self._make(run, {}) for run in runs):
            self.view.note(WAITING)
            time.sleep(POLL_SECONDS)

    def read_data(self) -> None:
        """Read the data of each task once: a mistake in it is no failure of a row.

        Raises:
            UserError: the data cannot be used.
        """
        first = {(cell.base, cell.task): cell for cell in reversed(self.cells)}
        for cell in first.values():
            try:
                self.worker.identity(cell.args, 0)
            except UserError as error:
                raise UserError(f"task {cell.task}: {error}") from error

    def _known_runs(self) -> Iterable[PlannedRun]:
        """Every run whose settings are known before anything is run."""
        for cell in self.cells:
            yield from self._search_runs(cell)
            if chosen := self._chosen(cell):
                yield from reported_runs(cell, chosen[0])

    def _pass(self) -> int:
        """Make every run that is free; returns how many are left to others."""
        left = 0
        for cell in self.cells:
            left += sum(not self._make(run, {}) for run in self._search_runs(cell))
            chosen = self._chosen(cell)
            if chosen is None:
                continue
            candidate, labels = chosen
            left += sum(not self._make(run, labels) for run in reported_runs(cell, candidate))
        return left

    # -- search --------------------------------------------------------------------------------

    def _search_runs(self, cell: Cell) -> list[PlannedRun]:
        if self.search is None or not cell.search:
            return []
        search = self.search
        return [
            PlannedRun(cell, seed, candidate, search.on, search.steps)
            for candidate in search.candidates_of(cell)
            for seed in search.seeds
        ]

    def _chosen(self, cell: Cell) -> tuple[Candidate, dict[str, Any]] | None:
        """The settings a cell is run with and what its records say of the search; None while it is not over."""
        runs = self._search_runs(cell)
        if self.search is None or not runs:
            return Candidate(), {}
        if not all(self.records.is_over(run) for run in runs):
            return None
        tried = []
        for candidate in dict.fromkeys(run.candidate.label for run in runs):
            mine = [run for run in runs if run.candidate.label == candidate]
            scores = [s for run in mine if (s := self.records.scores(run, self.search.on))]
            tried.append(Tried(mine[0].candidate, [s[0] for s in scores], [s[1] for s in scores]))
        best = choose(tried)
        if best is None:
            return None  # every run of the search failed; their records say why
        return best.candidate, {"search": search_record(tried, best, self.search.on)}

    # -- one run -------------------------------------------------------------------------------

    def _make(self, run: PlannedRun, labels: dict[str, Any]) -> bool:
        """Make a run if it is missing and free; returns whether it is over, made here or not."""
        if self.records.is_over(run):
            self._reuse(run)
            return True
        with self.claims.claimed(run.name) as is_mine:
            if not is_mine:
                return False
            if not self.records.is_over(run):  # made between the look and the claim
                self._make_claimed(run, labels)
            return True

    def _reuse(self, run: PlannedRun) -> None:
        known = (self.outcome.made, self.outcome.failed, self.outcome.reused)
        if not any(run.name in names for names in known):
            self.records.check(run)
            self.outcome.reused.append(run.name)

    def _make_claimed(self, run: PlannedRun, labels: dict[str, Any]) -> None:
        labels = {
            "study": self.study,
            "row": run.cell.row,
            "task": run.cell.task,
            "base_name": run.cell.base,
            "seed": run.seed,
        } | labels
        base = self.folder / RUNS / run.cell.base / run.cell.task / BASE_ROW
        order = Order(
            run.name,
            run.args,
            str(self.folder / run.name),
            labels,
            None if run.is_search else str(base),
        )
        self.view.started(run)
        start = time.perf_counter()
        try:
            self.make(order)
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001  one row's failure is a record, not the study's end
            self._record_failure(run, labels, error, time.perf_counter() - start)
        else:
            self.outcome.made.append(run.name)

    def _record_failure(
        self, run: PlannedRun, labels: dict[str, Any], error: Exception, seconds: float
    ) -> None:
        line = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, UserError):
            line = f"{type(error).__name__}: {line}"
        path = self.folder / run.name / "result.json"
        failed = {"schema": SCHEMA, "status": "failed", "error": line, "args": run.args}
        write_json(path, failed | {"seconds": {"fit": round(seconds, 3)}} | labels)
        self.outcome.failed.append(run.name)
