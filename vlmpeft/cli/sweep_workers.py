"""The same `sweep` in several processes of this machine, which share the study's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from vlmpeft.runtime.errors import Interrupted, UserError
from vlmpeft.study.stopping import GO_ON

WORKER = "VLMPEFT_SWEEP_WORKER"  # set for the processes that --jobs starts: they show nothing
AT_ONCE = "VLMPEFT_SWEEP_AT_ONCE"  # set for the same: how many of them have a GPU of their own


def start_workers(wishes: SimpleNamespace) -> None:
    """The same command in `jobs` processes, each with its share of the cores and a GPU of its own.

    Raises:
        Interrupted: a signal; the processes were told and have ended.
        UserError: one of them ended with an error.
    """
    workers = [_start_worker(number, wishes) for number in range(wishes.jobs)]
    asked: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    before = {n: signal.signal(n, lambda number, _: asked.append(number)) for n in numbers}
    told = 0
    try:
        while any(worker.poll() is None for worker in workers):
            time.sleep(0.2)
            for number in asked[told:]:
                _tell_all(workers, number)
            told = len(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _tell_all(workers, signal.SIGTERM)
    if asked:
        raise Interrupted(GO_ON)
    for number, worker in enumerate(workers):
        if worker.returncode not in (0, None):
            log = _log(wishes.folder, number).read_text(errors="replace").strip().splitlines()
            raise UserError(
                f"worker {number} ended with {worker.returncode}: {log[-1] if log else '-'}"
            )


def _log(folder: Path, number: int) -> Path:
    return folder / "claims" / f"worker-{number}.log"


def _start_worker(number: int, wishes: SimpleNamespace) -> subprocess.Popen:
    environment = os.environ | {WORKER: str(number)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // wishes.jobs)))
    if gpus := _gpus():
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        environment[AT_ONCE] = str(min(len(gpus), wishes.jobs))
    path = _log(wishes.folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "vlmpeft", "sweep", *_words(wishes)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches them through this process, once
        )


def _words(wishes: SimpleNamespace) -> list[str]:
    """The command of a worker: this one's, for one process."""
    words = [wishes.study, "--out", str(wishes.folder), "--yes=true", f"--redo={wishes.redo}"]
    words += ["--launcher", wishes.launcher]
    if wishes.only:
        words += ["--only", *wishes.only]
    if wishes.accept:
        words += ["--accept", *wishes.accept]
    if wishes.match_parameters:
        words.append(f"--match_parameters={wishes.match_parameters}")
    for name in ("seeds", "shard", "budget"):
        if (value := getattr(wishes, name)) is not None:
            words += [f"--{name}", value]
    return [*words, *wishes.run_args]


def _gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        return given.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


def _tell_all(workers: Sequence[subprocess.Popen], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)
