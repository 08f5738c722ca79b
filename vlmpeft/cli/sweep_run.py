"""Runs a study that is resolved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vlmpeft.cli.study_files import study_spec, write_recommendations, write_study_files
from vlmpeft.cli.study_runs import RunOpener
from vlmpeft.cli.sweep_view import SweepView, summary
from vlmpeft.cli.sweep_workers import WORKER, start_workers
from vlmpeft.cli.table import show_table
from vlmpeft.runtime.errors import GateFailed, UserError
from vlmpeft.runtime.visible import visible
from vlmpeft.study.info import study_info
from vlmpeft.study.launchers.subprocesses import make_in_subprocess
from vlmpeft.study.order import Make
from vlmpeft.study.planned_run import PlannedRun, reported_runs, search_runs
from vlmpeft.study.records_on_disk import Accept
from vlmpeft.study.report.info import write_info
from vlmpeft.study.resolving import ResolvedCell, ResolvedStudy
from vlmpeft.study.runner import Runner
from vlmpeft.study.stopping import Stop
from vlmpeft.study.watch import StudyWatch
from vlmpeft.study.worker import Worker

import lightning.pytorch as pl  # isort: skip  after vlmpeft.study.worker


def run_sweep(study: ResolvedStudy, cells: Sequence[ResolvedCell], wishes: SimpleNamespace) -> None:
    """Make what is missing of a study.

    Args:
        study: resolved.
        cells: those that are meant.
        wishes: the options of the verb.

    Raises:
        UserError: a folder that cannot be written, a finished record of other settings.
        Interrupted: a signal; the same command goes on.
        GateFailed: some run failed.
    """
    folder: Path = wishes.folder
    legal = [one for one in cells if not one.cell.illegal]
    seeds = sorted({seed for one in cells for seed in one.cell.seeds})
    write_info(folder, study_info(study, seeds))
    mine = _shard(legal, wishes.shard)
    watch = StudyWatch(folder, [run.name for one in legal for run in _runs(one, study)])
    view = SweepView(study.spec.title, watch)
    if WORKER in os.environ:
        _work(study, mine, wishes, view)
        return
    with view:
        if wishes.launcher == "ray":
            _work_on_cluster(study, mine, wishes, view)
        elif (wishes.jobs or 1) > 1:
            start_workers(wishes)
        else:
            _work(study, mine, wishes, view)
    progress = watch.look()
    view.note(f"{folder}: {summary(progress)}")
    if len(progress.over) == progress.total:
        _write_files(folder, view)
        if study.spec.recommend:
            for line in write_recommendations(folder):
                print(visible(line))  # noqa: T201
    if progress.failed:
        raise GateFailed(
            f"{len(progress.failed)} run(s) failed, e.g. {progress.failed[0].name}: {progress.failed[0].error}; the same "
            "command tries them again"
        )


def _write_files(folder: Path, view: SweepView) -> None:
    """Tables, plots and page; whoever is last with the runs writes them."""
    try:
        written = write_study_files(folder)
    except UserError as error:
        view.note(f"no table: {error}")
        return
    for path in written:
        if path.suffix in (".md", ".html"):
            view.note(f"  {path}")
    show_table(folder, study_spec(folder), None, None)


def _runs(one: ResolvedCell, study: ResolvedStudy) -> list[PlannedRun]:
    tries = search_runs(one.cell, one.candidates, study.spec.search)
    return [*tries, *reported_runs(one.cell)]


def _shard(cells: Sequence[ResolvedCell], shard: str | None) -> list[ResolvedCell]:
    """Every n-th cell, beginning with the k-th, of a shard K/N; all of them without one."""
    if shard is None:
        return list(cells)
    k, _, n = shard.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise UserError(f"--shard {shard}: give K/N with 1 <= K <= N, e.g. 3/8")
    return list(cells)[int(k) - 1 :: int(n)]


# -- who makes the runs ----------------------------------------------------------------------------


def _work(
    study: ResolvedStudy, cells: Sequence[ResolvedCell], wishes: SimpleNamespace, view: SweepView
) -> None:
    stop = Stop()
    worker = Worker(RunOpener([stop, Steps(view)]))
    make = make_in_subprocess if wishes.launcher == "subprocess" else None
    with stop.handled():
        runner_of(study, cells, wishes, view, worker, make).run()


def _work_on_cluster(
    study: ResolvedStudy, cells: Sequence[ResolvedCell], wishes: SimpleNamespace, view: SweepView
) -> None:
    from vlmpeft.cli.sweep_cluster import work_on_cluster

    worker = Worker(RunOpener())  # says what a run would be, and makes none
    work_on_cluster(lambda make: runner_of(study, cells, wishes, view, worker, make), wishes, view)


def runner_of(
    study: ResolvedStudy,
    cells: Sequence[ResolvedCell],
    wishes: SimpleNamespace,
    view: SweepView,
    worker: Worker,
    make: Make | None,
) -> Runner:
    """What makes the runs of some cells, as the options of the verb say."""
    return Runner(
        study.spec.name,
        wishes.folder,
        cells,
        worker,
        study.spec.search,
        Accept(wishes.redo, tuple(wishes.accept)),
        view,
        make,
    )


class Steps(pl.Callback):
    """Tells the view of each optimizer step."""

    def __init__(self, view: SweepView):
        self.view = view

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
        self.view.stepped(trainer.global_step, int(trainer.estimated_stepping_batches), loss)
