"""Which row converges fastest, from the training losses of its runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmpeft.study.report.run import Run

SHARE = 0.9  # of an improvement, from which on it counts as made
_LOSS = re.compile(rb"^(\d+),train/loss,(\S+?)\r?$", re.MULTILINE)


@dataclass(frozen=True)
class Losses:
    """Running means of the training loss of a row's seeds.

    Args:
        steps: (S,) those that every seed has.
        values: (seeds, S) in nats per token.
    """

    steps: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        return self.values.mean(0)

    @property
    def sd(self) -> np.ndarray:
        return self.values.std(0, ddof=1) if len(self.values) > 1 else np.zeros(len(self.steps))


@dataclass(frozen=True)
class Convergence:
    """How fast a row gets there.

    Args:
        row: its name.
        to_common: mean steps over the seeds that reach the common loss, nan if none does.
        reached: how many seeds do.
        seeds: how many there are.
        to_own: mean steps until 90 % of the row's own improvement are made.
        final: its last running mean of the loss, over seeds.
    """

    row: str
    to_common: float
    reached: int
    seeds: int
    to_own: float
    final: float


def read_losses(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(steps (S,), training losses (S,)) of `metrics.csv`; empty where there are none.

    A damaged line is left out, and so is a loss that is not finite: the curve of a run that diverged ends there.
    """
    path = run.folder / "metrics.csv"
    content = path.read_bytes() if path.is_file() else b""
    losses: dict[int, float] = {}
    for step, value in _LOSS.findall(content):
        try:
            losses[int(step)] = float(value)
        except ValueError:
            continue
    losses = {step: value for step, value in losses.items() if np.isfinite(value)}
    steps = np.array(sorted(losses), int)
    return steps, np.array([losses[step] for step in steps.tolist()], float)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """(S,) -> (S,): the mean of each value and those before it, `window` of them where there are so many.

    >>> running_mean(np.array([4.0, 2.0, 6.0]), 2).tolist()
    [4.0, 3.0, 4.0]
    """
    if not len(values):
        return values
    sums = np.convolve(values, np.ones(window))[: len(values)]
    return sums / np.minimum(np.arange(1, len(values) + 1), window)


def window_of(steps: int) -> int:
    """How many steps a running mean takes: a fortieth of the run, at least 5."""
    return max(1, min(steps, max(5, steps // 40)))


def losses_of(runs: Sequence[Run], window: int | None = None) -> Losses | None:
    """The running means of a row's runs; None if a run has left no losses.

    Args:
        runs: of one row, a seed each.
        window: of the running mean; default a fortieth of the longest run.
    """
    read = [pair for run in runs if len((pair := read_losses(run))[0])]
    if not read:
        return None
    window = window or window_of(max(len(steps) for steps, _ in read))
    shared = read[0][0]
    for steps, _ in read[1:]:
        shared = np.intersect1d(shared, steps)
    smooth = [
        running_mean(values, window)[np.searchsorted(steps, shared)] for steps, values in read
    ]
    return Losses(shared, np.stack(smooth)) if len(shared) else None


def common_loss(found: Sequence[Losses]) -> float:
    """The loss that counts as converged: where 90 % of the way from the mean first loss to the best row's last are done."""
    first = float(np.mean([losses.mean[0] for losses in found]))
    best = float(min([losses.mean[-1] for losses in found]))
    return first - SHARE * (first - best)


def convergence(rows: Sequence[tuple[str, Losses]]) -> list[Convergence]:
    """How fast each row gets to the common loss and to its own, by name, in the order given."""
    if not rows:
        return []
    common = common_loss([losses for _, losses in rows])
    return [_convergence(name, losses, common) for name, losses in rows]


def _convergence(name: str, losses: Losses, common: float) -> Convergence:
    there = [steps_to(losses.steps, values, common) for values in losses.values]
    own = [
        steps_to(losses.steps, values, values[0] - SHARE * (values[0] - values[-1]))
        for values in losses.values
    ]
    reached = [steps for steps in there if np.isfinite(steps)]
    mean = float(np.mean(reached)) if reached else float("nan")
    return Convergence(
        name, mean, len(reached), len(there), float(np.mean(own)), float(losses.mean[-1])
    )


def steps_to(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """Optimizer steps done when the values are first at or below a level; nan if they never are."""
    below = np.flatnonzero(values <= level)
    return float(steps[below[0]] + 1) if len(below) else float("nan")
