"""Makes every run of a study that is not made yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlmpeft.runtime.errors import Interrupted, UserError, error_line
from vlmpeft.runtime.records import SCHEMA, write_json
from vlmpeft.study.choosing import Tried, choose, search_record
from vlmpeft.study.claims import Claims
from vlmpeft.study.order import Make, Order
from vlmpeft.study.planned_run import Candidate, PlannedRun, reported_runs, search_runs
from vlmpeft.study.records_on_disk import Accept, RecordsOnDisk
from vlmpeft.study.report.records import BASE_ROW, RUNS
from vlmpeft.study.resolving import ResolvedCell
from vlmpeft.study.spec import Search
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


class Runner:
    """Makes the runs of some cells, beside any number of other processes that do the same.

    Args:
        study: name of the study, for its records.
        folder: `results/<study>/`.
        cells: those that can be run, with what a search tries of each.
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
        cells: Sequence[ResolvedCell],
        worker: Worker,
        search: Search | None,
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
        cells = [one.cell for one in reversed(self.cells)]
        first = {(cell.base, cell.task): cell for cell in cells}
        for cell in first.values():
            try:
                self.worker.identity(cell.args, 0)
            except UserError as error:
                raise UserError(f"task {cell.task}: {error}") from error

    def _known_runs(self) -> Iterable[PlannedRun]:
        """Every run whose settings are known before anything is run."""
        for one in self.cells:
            tries = self._tries(one)
            yield from tries
            if chosen := self._chosen(tries):
                yield from reported_runs(one.cell, chosen[0])

    def _pass(self) -> int:
        """Make every run that is free; returns how many are left to others."""
        left = 0
        for one in self.cells:
            tries = self._tries(one)
            others = sum(not self._make(run, {}) for run in tries)
            left += others
            if others:
                continue
            if chosen := self._chosen(tries):
                candidate, labels = chosen
                runs = reported_runs(one.cell, candidate)
                left += sum(not self._make(run, labels) for run in runs)
            else:
                left += sum(not self._give_up(run) for run in reported_runs(one.cell))
        return left

    # -- search --------------------------------------------------------------------------------

    def _tries(self, one: ResolvedCell) -> list[PlannedRun]:
        return list(search_runs(one.cell, one.candidates, self.search))

    def _chosen(self, runs: Sequence[PlannedRun]) -> tuple[Candidate, dict[str, Any]] | None:
        """The settings a cell is run with and what its records say of the search; None if no try of it is done."""
        if self.search is None or not runs:
            return Candidate(), {}
        tried = []
        for candidate in dict.fromkeys(run.candidate.label for run in runs):
            mine = [run for run in runs if run.candidate.label == candidate]
            scores = [s for run in mine if (s := self.records.scores(run, self.search.on))]
            tried.append(Tried(mine[0].candidate, [s[0] for s in scores], [s[1] for s in scores]))
        best = choose(tried)
        if best is None:
            return None
        return best.candidate, {"search": search_record(tried, best, self.search.on)}

    # -- one run -------------------------------------------------------------------------------

    def _make(self, run: PlannedRun, labels: dict[str, Any]) -> bool:
        """Make a run if it is missing and free; returns whether it is over, made here or not."""
        if self.records.is_over(run):
            self._reuse(run)
            return True
        return self._claimed(run, lambda: self._make_claimed(run, labels))

    def _give_up(self, run: PlannedRun) -> bool:
        """Record that a run cannot be made, since nothing is known of its settings; returns whether that is done."""
        error = UserError("every try of its search failed; their records in search/ say why")
        return self.records.is_over(run) or self._claimed(
            run, lambda: self._record_failure(run, self._labels(run), error, 0.0)
        )

    def _claimed(self, run: PlannedRun, make: Callable[[], None]) -> bool:
        with self.claims.claimed(run.name) as is_mine:
            if is_mine and not self.records.is_over(run):  # made between the look and the claim
                make()
            return is_mine

    def _reuse(self, run: PlannedRun) -> None:
        known = (self.outcome.made, self.outcome.failed, self.outcome.reused)
        if not any(run.name in names for names in known):
            self.records.check(run)
            self.outcome.reused.append(run.name)

    def _make_claimed(self, run: PlannedRun, labels: dict[str, Any]) -> None:
        labels = self._labels(run) | labels
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

    def _labels(self, run: PlannedRun) -> dict[str, Any]:
        cell = run.cell
        return {
            "study": self.study,
            "row": cell.row,
            "task": cell.task,
            "base_name": cell.base,
            "seed": run.seed,
            "search": None,  # what the config says of a search was another one
        }

    def _record_failure(
        self, run: PlannedRun, labels: dict[str, Any], error: Exception, seconds: float
    ) -> None:
        self.outcome.failed.append(run.name)
        if not self.records.is_over(run):  # the run has not said so itself
            failed = {"schema": SCHEMA, "status": "failed", "error": error_line(error)}
            seconds_of = {"seconds": {"fit": round(seconds, 3)}}
            write_json(self.folder / run.name / "result.json", failed | seconds_of | labels)
