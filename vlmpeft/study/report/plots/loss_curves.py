"""Training loss over steps, a line a row: which configuration converges fastest."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vlmpeft.study.report.convergence import (
    SHARE,
    Convergence,
    Losses,
    common_loss,
    convergence,
    losses_of,
    window_of,
)
from vlmpeft.study.report.plots.canvas import (
    Mark,
    handle,
    legend_beside,
    log_heights,
    new_figure,
    reference_line,
    shown,
)
from vlmpeft.study.report.plots.view import NotDrawableError, RowRuns, View

_POINTS = 200  # of a line
_CLEAR = 6  # bands of more rows than that are drawn fainter


def draw_losses(view: View) -> Figure:
    """Running mean of the training loss, mean and deviation over seeds.

    Raises:
        NotDrawableError: no run has left losses.
    """
    found = [(one, losses) for one in view.rows if (losses := losses_of(one.runs)) is not None]
    if not found:
        raise NotDrawableError("no run has a metrics.csv with train/loss")
    figure, axes = new_figure(view.title)
    for one, losses in found:
        _draw_row(axes, one, losses, 0.15 if len(found) <= _CLEAR else 0.06)
    level = common_loss([losses for _, losses in found])
    reference_line(axes, level, f"{SHARE:.0%} of the way: {level:.3g}", ":")
    handles = _handles(found) + [line for line in axes.get_lines() if line.get_gid() is None]
    legend_beside(axes, handles, "steps to the dotted loss, fastest first")
    _label_axes(axes, view, [losses for _, losses in found])
    return figure


def _label_axes(axes: Axes, view: View, found: list[Losses]) -> None:
    smallest = min(float(np.min(losses.mean)) for losses in found)
    is_log = 0 < smallest < max(float(np.max(losses.mean)) for losses in found) / 10
    if is_log:
        log_heights(axes)
    window = window_of(max(len(losses.steps) for losses in found))
    unit = "nats per token, log scale" if is_log else "nats per token"
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"training loss ({unit})\nmean of the last {window} steps{view.seeds_note}")


def _handles(found: list[tuple[RowRuns, Losses]]) -> list[Line2D]:
    """Entries of the legend, the fastest row first."""
    speeds = convergence([(one.row.name, losses) for one, losses in found])
    pairs = list(zip([one for one, _ in found], speeds, strict=True))
    pairs.sort(key=lambda pair: (not pair[1].reached, pair[1].to_common))
    return [handle(Mark.of(one.position), _label(one, s), is_line=True) for one, s in pairs]


def _draw_row(axes: Axes, one: RowRuns, losses: Losses, alpha: float) -> None:
    every = max(1, -(-len(losses.steps) // _POINTS))
    steps, mean, sd = losses.steps[::every] + 1, losses.mean[::every], losses.sd[::every]
    mark = Mark.of(one.position)
    if sd.any():
        low = np.maximum(mean - sd, mean / 10)  # on a log scale
        axes.fill_between(steps, low, mean + sd, color=mark.colour, alpha=alpha, linewidth=0)
    apart = max(1, len(steps) // 8)
    axes.plot(
        steps, mean, gid=shown(one.row.name), linewidth=1.2, markersize=4.5,
        markevery=(one.position * 3 % apart, apart), **mark.curve,
    )  # fmt: skip


def _label(one: RowRuns, speed: Convergence) -> str:
    if not speed.reached:
        return f"{one.row.title}: not reached"
    some = f" ({speed.reached} of {speed.seeds} seeds)" if speed.reached < speed.seeds else ""
    return f"{one.row.title}: {speed.to_common:,.0f}{some}"
