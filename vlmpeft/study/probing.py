"""How long the runs of a study will take, told from twenty real steps of one of them."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmpeft.study.resolving import ResolvedCell
from vlmpeft.study.spec import Search
from vlmpeft.study.worker import Worker

import lightning.pytorch as pl  # isort: skip  after vlmpeft.study.worker

STEPS, WARM_UP = 20, 5
ITEMS = 32  # scored by the probe; the rest is taken to be as slow


class StepTimes(pl.Callback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_start(self, *args: Any, **kwargs: Any) -> None:
        self.ends = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def median(self) -> float:
        """Seconds of a step, without the first few."""
        ends = self.ends[WARM_UP:] if len(self.ends) > WARM_UP + 1 else self.ends
        return statistics.median(b - a for a, b in itertools.pairwise(ends))


@dataclass(frozen=True)
class Probe:
    """What one run takes.

    Args:
        step_seconds: an optimizer step.
        steps: of a run.
        score_seconds: of a run's scores after training, controls among them.
    """

    step_seconds: float
    steps: int
    score_seconds: float

    def of_cell(self, one: ResolvedCell, search: Search | None) -> float:
        """Seconds of every run of a cell, those of the search among them, one after another."""
        runs = len(one.cell.seeds) * (self.steps * self.step_seconds + self.score_seconds)
        if search is None or not one.candidates:
            return runs
        steps = search.steps or self.steps
        tries = len(one.candidates) * len(search.seeds)
        return runs + tries * (steps * self.step_seconds + self.score_seconds / 2)


class Prober:
    """Probes one cell of each task and base; the other cells are taken to be as fast.

    Args:
        worker: makes the probe's run.
        times: a callback of the worker's runs.
        search: of the study.
        args: of `fit`, beside the cell's.
    """

    def __init__(
        self,
        worker: Worker,
        times: StepTimes,
        search: Search | None,
        args: tuple[str, ...] = (),
    ):
        self.worker, self.times, self.search, self.args = worker, times, search, args
        self._known: dict[tuple[str, str], Probe] = {}

    def __call__(self, one: ResolvedCell) -> float | None:
        """Seconds of every run of a cell."""
        return self.probe(one).of_cell(one, self.search)

    def probe(self, one: ResolvedCell) -> Probe:
        """What one run of a cell takes."""
        key = one.cell.base, one.cell.task
        if key not in self._known:
            self._known[key] = self._probe(one)
        return self._known[key]

    def _probe(self, one: ResolvedCell) -> Probe:
        short = ("--seed_everything=0", f"--trainer.max_steps={STEPS}", f"--eval.limit={ITEMS}")
        with tempfile.TemporaryDirectory() as folder:
            run = self.worker.prepare((*one.cell.args, *self.args, *short), Path(folder) / "probe")
            whole = self.worker.prepare((*one.cell.args, *self.args), Path(folder) / "whole")
            record = self.worker.make(run, {"row": one.cell.row})
        # the scores of the tuned model, and what is saved
        after = time.perf_counter() - self.times.ends[-1]
        items = sum(
            len(whole.data.dataset(split))
            for split in record["metrics"]["tuned"]
            if whole.data.has(split)
        )
        scored = sum(len(run.data.dataset(split)) for split in record["metrics"]["tuned"])
        steps = _steps(whole.config["trainer"], whole.data)
        return Probe(self.times.median(), steps, after * items / max(1, scored))


def _steps(trainer: dict[str, Any], data: Any) -> int:
    """Optimizer steps of a run."""
    batches = -(-len(data.dataset("train")) // data.batch_size)
    epoch = max(1, batches // max(1, trainer["accumulate_grad_batches"]))
    epochs, most = trainer["max_epochs"], trainer["max_steps"]
    by_epochs = epochs * epoch if epochs and epochs > 0 else None
    limits = [limit for limit in (by_epochs, most) if limit and limit > 0]
    return min(limits) if limits else epoch
