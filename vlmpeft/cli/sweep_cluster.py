"""Runs a study on a Ray cluster: several runners in threads of this process, each of which waits for one run at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from vlmpeft.cli.sweep_view import SweepView
from vlmpeft.runtime.errors import Interrupted
from vlmpeft.study.launchers.ray_cluster import RayCluster
from vlmpeft.study.order import Make
from vlmpeft.study.runner import Runner
from vlmpeft.study.stopping import GO_ON, Stop


def work_on_cluster(
    runner_of: Callable[[Make], Runner], wishes: SimpleNamespace, view: SweepView
) -> None:
    """Make what is missing of a study on a cluster.

    Args:
        runner_of: a new runner whose runs are made as it is told.
        wishes: the options of the verb.
        view: told what happens.

    Raises:
        UserError: there is no such cluster, or what a runner raises.
        Interrupted: a signal; the checkpoints of what ran are here.
    """
    log = wishes.folder / "claims" / "ray.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file, contextlib.redirect_stdout(file):  # what Ray says of its nodes
        _work(runner_of, wishes, view)


def _work(runner_of: Callable[[Make], Runner], wishes: SimpleNamespace, view: SweepView) -> None:
    cpus = 1.0 if wishes.cpus_per_run is None else wishes.cpus_per_run
    cluster = RayCluster(wishes.address or "auto", view.note, cpus, wishes.gpus_per_run)
    try:
        jobs = cluster.room if wishes.jobs is None else wishes.jobs
        _work_together([runner_of(cluster.make) for _ in range(jobs)], cluster, view)
    finally:
        cluster.close()
        if cluster.runs_on:
            parts = [f"{count} on {node}" for node, count in cluster.runs_on.items()]
            view.note(f"runs made by the cluster: {', '.join(parts)}")


def _work_together(runners: Sequence[Runner], cluster: RayCluster, view: SweepView) -> None:
    """Let every runner work in a thread of its own, until all of them have ended."""
    errors: list[BaseException] = []
    threads = [
        threading.Thread(target=_run, args=(runner, cluster, errors), daemon=True)
        for runner in runners
    ]
    with Stop().handled():
        for thread in threads:
            thread.start()
        try:
            _wait_for(threads)
        except Interrupted:
            cluster.stop()
            view.note("stopping: each run saves a checkpoint, which is brought here")
            _wait_for(threads)
            raise
    for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):
        raise Interrupted(GO_ON) if isinstance(error, Interrupted) else error


def _run(runner: Runner, cluster: RayCluster, errors: list[BaseException]) -> None:
    try:
        runner.run()
    except BaseException as error:  # noqa: BLE001  raised where the threads are waited for
        errors.append(error)
        cluster.stop()


def _wait_for(threads: Sequence[threading.Thread]) -> None:
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
