"""What rows gain on their task against what they lose on the source task."""

from __future__ import annotations

from matplotlib.figure import Figure

from vlmpeft.study.report.plots.canvas import (
    GREY,
    Mark,
    draw_point,
    handle,
    legend_beside,
    new_figure,
)
from vlmpeft.study.report.plots.view import NotDrawableError, RowRuns, Spread, View


def learnt_and_forgotten(view: View, one: RowRuns) -> tuple[Spread, Spread]:
    """(gain on the reported split, loss on the retention split) over seeds, in the view's unit.

    These are the axes of Biderman et al. 2024, arXiv:2405.09673, section 4.2.
    """
    sign = view.unit.factor * (-1 if view.is_lower_better else 1)
    gains = [
        sign * (run.score(view.metric) - run.score(view.metric, state="base")) for run in one.runs
    ]
    losses = [
        sign * (run.score(view.metric, "retention", "base") - run.score(view.metric, "retention"))
        for run in one.runs
    ]
    return Spread.of(gains), Spread.of(losses)


def draw_forgetting(view: View) -> Figure:
    """Forgetting against learning, a point a row.

    Raises:
        NotDrawableError: no record has the score of the source task before and after.
    """
    points = [(one, *learnt_and_forgotten(view, one)) for one in view.rows]
    points = [(one, gain, loss) for one, gain, loss in points if gain.n and loss.n]
    if not points:
        raise NotDrawableError(
            f"no record has {view.metric} of the retention split before and after"
        )
    figure, axes = new_figure(view.title)
    for one, gain, loss in points:
        mark = Mark.of(one.position)
        draw_point(axes, one.row.name, mark, gain.mean, loss.mean, gain.sd, loss.sd)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    name = view.metric.replace("_", " ")
    unit = {"%": " (points)"}.get(view.unit.name, f" ({view.unit.name})" if view.unit.name else "")
    axes.set_xlabel(f"learnt: gain in {name}, {view.split}{unit}{view.seeds_note}")
    axes.set_ylabel(f"forgotten: loss in {name}, source task{unit}")
    legend_beside(axes, [handle(Mark.of(one.position), one.row.title) for one, *_ in points])
    return figure
