"""Score against trained parameters, with the rows that no other row beats in both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vlmpeft.study.report.plots.canvas import (
    GREY,
    Mark,
    count_axis,
    draw_point,
    handle,
    legend_beside,
    new_figure,
    reference_line,
)
from vlmpeft.study.report.plots.view import NotDrawableError, View


def pareto_front(
    sizes: Sequence[float], scores: Sequence[float], *, is_lower_better: bool = False
) -> list[int]:
    """Which points no other point dominates, by size.

    A point dominates another if it is no larger and no worse, and one of the two strictly.

    Args:
        sizes: (N,) what is to be small.
        scores: (N,) what is to be good.
        is_lower_better: whether a good score is a small one.
    """
    signed = np.asarray(scores, float) * (-1 if is_lower_better else 1)
    front: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i], -signed[i])):
        best = signed[front[-1]] if front else -np.inf
        twin = bool(front) and (sizes[index], signed[index]) == (sizes[front[-1]], best)
        if signed[index] > best or twin:
            front.append(index)
    return front


def draw_pareto(view: View) -> Figure:
    """Score against trained parameters, and the Pareto front as steps.

    Raises:
        NotDrawableError: no row trains a parameter.
    """
    rows = [one for one in view.rows if one.trainable > 0 and one.spread(view.metric).n]
    if not rows:
        raise NotDrawableError("no row trains a parameter")
    figure, axes = new_figure(view.title)
    sizes = [one.trainable for one in rows]
    spreads = [one.spread(view.metric, factor=view.unit.factor) for one in rows]
    handles = []
    for one, size, spread in zip(rows, sizes, spreads, strict=True):
        mark = Mark.of(one.position)
        draw_point(axes, one.row.name, mark, size, spread.mean, y_sd=spread.sd)
        handles.append(handle(mark, one.row.title))
    means = [spread.mean for spread in spreads]
    front = pareto_front(sizes, means, is_lower_better=view.is_lower_better)
    x, y = [sizes[i] for i in front], [means[i] for i in front]
    axes.step(
        x, y, where="post", color=GREY, linewidth=1, alpha=0.8, zorder=1, label="Pareto front"
    )
    reference_line(axes, view.full, "full fine-tuning", "--")
    reference_line(axes, view.zero_shot, "zero-shot", ":")
    count_axis(axes)
    axes.set_xlabel("trained parameters (log scale)")
    axes.set_ylabel(view.axis)
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    legend_beside(axes, [*handles, *lines])
    return figure
