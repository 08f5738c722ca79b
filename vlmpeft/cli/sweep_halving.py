"""`sweep --budget`: successive halving of a study's rows, in a given time; nothing that tables report is run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vlmpeft.cli.study_runs import RunOpener
from vlmpeft.cli.sweep_run import Steps, runner_of
from vlmpeft.cli.sweep_view import SweepView
from vlmpeft.cli.sweep_workers import AT_ONCE, WORKER, start_workers
from vlmpeft.runtime.errors import GateFailed, UserError
from vlmpeft.runtime.records import read_record
from vlmpeft.runtime.visible import terminal_console, visible
from vlmpeft.study.budget import read_seconds
from vlmpeft.study.deadline import Deadline
from vlmpeft.study.halving import Cost, first_steps
from vlmpeft.study.halving_fields import ON, Field, begun_runs, fields_of, head, missing_runs
from vlmpeft.study.halving_file import (
    WARNING,
    agreed_steps,
    columns,
    found_of,
    lines,
    write_agreed,
    write_found,
)
from vlmpeft.study.info import study_info
from vlmpeft.study.launchers.subprocesses import make_in_subprocess
from vlmpeft.study.probing import Prober, StepTimes
from vlmpeft.study.records_on_disk import Accept, RecordsOnDisk
from vlmpeft.study.report.info import write_info
from vlmpeft.study.resolving import ResolvedCell, ResolvedStudy
from vlmpeft.study.runner import Runner
from vlmpeft.study.stopping import Stop
from vlmpeft.study.watch import Progress, StudyWatch
from vlmpeft.study.worker import Worker

OVERHEAD_SECONDS = 1.0  # of a run, beside its steps and scores
POLL_SECONDS = 1.0


def run_halving(
    study: ResolvedStudy, cells: Sequence[ResolvedCell], wishes: SimpleNamespace
) -> None:
    """Halve the rows of a study, each with each setting that its search tries, until one is left or the time is over.

    Args:
        study: resolved.
        cells: those that are meant.
        wishes: the options of the verb.

    Raises:
        UserError: no choice, or too little time for one step of every arm.
        Interrupted: a signal; the same command goes on.
        GateFailed: some run failed.
    """
    halving = _Halving(study, cells, wishes)
    if WORKER in os.environ:
        halving.work()
        return
    with halving.view:
        if (wishes.jobs or 1) > 1:
            start_workers(wishes)
        else:
            halving.work()
    halving.finish()


class _Halving:
    def __init__(
        self, study: ResolvedStudy, cells: Sequence[ResolvedCell], wishes: SimpleNamespace
    ):
        self.began, self.seconds = wishes.began, read_seconds(wishes.budget)
        self.study, self.wishes, self.folder = study, wishes, wishes.folder
        self.cells = [one for one in cells if not one.cell.illegal]
        self.fields = fields_of(self.cells, study.spec.search)
        if all(len(field.arms) == 1 for field in self.fields):
            raise UserError(
                f"--budget {wishes.budget}: one row with one setting is no choice; give more of them"
            )
        write_info(self.folder, study_info(study, {s for one in cells for s in one.cell.seeds}))
        self.head = head(self.fields, self.seconds)
        self.view = SweepView(study.spec.title, _Watch(self))
        self.records = RecordsOnDisk(
            self.folder, Worker(RunOpener()), Accept(), time.time(), self.view.note
        )

    def names(self) -> list[str]:
        """Of every run of the rungs that have begun."""
        steps = agreed_steps(self.folder, self.head)
        if steps is None:
            return []
        return [run.name for run in begun_runs(self.fields, steps, self.records)]

    def work(self) -> None:
        """Make rung after rung, until the time is over."""
        stop, times = Stop(), StepTimes()
        worker = Worker(RunOpener([stop, times, Steps(self.view)]))
        make = make_in_subprocess if self.wishes.launcher == "subprocess" else None
        runner = runner_of(self.study, self.cells, self.wishes, self.view, worker, make)
        with stop.handled():
            runner.read_data()
            steps = self._agree(runner, Prober(worker, times, None, _SEARCH))
            deadline = Deadline(self.began + self.seconds - time.monotonic(), stop)
            with deadline.kept():
                while runs := missing_runs(self.fields, steps, runner.records):
                    runner.make_all(runs)

    def _agree(self, runner: Runner, prober: Prober) -> int:
        """Steps of the first rung: as another process said, or as many as the time allows."""
        while True:
            if steps := agreed_steps(self.folder, self.head):
                return steps
            with runner.claims.claimed("halving") as is_mine:
                if is_mine:
                    steps = self._affordable(prober)
                    write_agreed(self.folder, self.study.spec.name, self.head, steps)
                    return steps
            time.sleep(POLL_SECONDS)

    def _affordable(self, prober: Prober) -> int:
        costs = [_cost(field, prober) for field in self.fields]
        at_once = int(os.environ.get(AT_ONCE, "1"))
        left = self.seconds - (time.monotonic() - self.began)
        steps = first_steps(costs, at_once * left)
        if not steps:
            least = sum(cost.seconds(1) for cost in costs) / at_once + self.seconds - left
            raise UserError(
                f"--budget {self.wishes.budget}: one step of each arm and the rungs after it take about {least:.0f}s here; give "
                "more, or fewer rows with --only"
            )
        return steps

    def finish(self) -> None:
        """Write and show what was found.

        Raises:
            GateFailed: some run failed.
        """
        steps = agreed_steps(self.folder, self.head)
        if steps is None:
            return
        found = found_of(self.fields, [f.rungs(steps, self.records) for f in self.fields])
        paths = write_found(self.folder, self.study.spec.name, found, self._metric(steps))
        _show(terminal_console(), found, self._metric(steps))
        for path in paths:
            self.view.note(f"  {path}")
        if failed := self.view.watch.look().failed:
            raise GateFailed(
                f"{len(failed)} run(s) failed, e.g. {failed[0].name}: {failed[0].error}; the same command tries them again"
            )

    def _metric(self, steps: int) -> str:
        for run in begun_runs(self.fields, steps, self.records):
            record = read_record(self.folder / run.name)
            if record and record["status"] == "done":
                return record["primary"]
        return "score"


_SEARCH = (f"--eval.splits=[{ON}]", "--eval.controls=[]")


def _cost(field: Field, prober: Prober) -> Cost:
    probe = prober.probe(field.largest)
    beside = probe.score_seconds + OVERHEAD_SECONDS
    return Cost(len(field.arms), len(field.seeds), probe.step_seconds, beside, probe.steps)


class _Watch(StudyWatch):
    """Looks at the rungs that have begun; they become more."""

    def __init__(self, halving: _Halving):
        super().__init__(halving.folder, [])
        self.halving = halving

    def look(self) -> Progress:
        self.names = self.halving.names()
        return super().look()


def _show(console: Console, found: Sequence[Mapping[str, Any]], metric: str) -> None:
    """A ranking a field."""
    for one in found:
        table = Table(title=f"{one['task']} on {one['base']}", box=SIMPLE_HEAD)
        for name in columns(metric):
            table.add_column(name, justify="right" if name not in ("row", "settings") else "left")
        for line in lines(one):
            table.add_row(*map(visible, line))
        console.print(table)
        if not one["is_over"]:
            console.print("the budget was spent before its last rung was over")
    console.print(WARNING, soft_wrap=True)
