"""Score over a number that rows differ in: the rank, or the amount of training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmpeft.study.report.plots.canvas import (
    Mark,
    handle,
    legend_beside,
    new_figure,
    reference_line,
    shown,
)
from vlmpeft.study.report.plots.factors import (
    FOLLOW_RANK,
    FOLLOW_SIZE,
    data_size_of,
    lines_over,
    rank_of,
)
from vlmpeft.study.report.plots.view import NotDrawableError, RowRuns, View

Lines = Mapping[str, Sequence[tuple[float, RowRuns]]]  # label -> (number, row)


def draw_ranks(view: View) -> Figure:
    """Score over rank.

    Raises:
        NotDrawableError: no rows that differ in their rank only.
    """
    lines = lines_over(view.rows, rank_of, FOLLOW_RANK)
    return _draw(view, lines, "rank r (log scale)", "rank")


def draw_data_scaling(view: View) -> Figure:
    """Score over the number of training conversations.

    Raises:
        NotDrawableError: no rows that differ in their training data only.
    """
    lines = lines_over(view.rows, data_size_of, FOLLOW_SIZE)
    label = "training conversations (log scale)"
    return _draw(view, lines, label, "number of training conversations")


def _draw(view: View, lines: Lines, label: str, number: str) -> Figure:
    if not lines:
        raise NotDrawableError(f"no rows differ in their {number} only")
    figure, axes = new_figure(view.title)
    handles = [
        _draw_line(axes, view, Mark.of(number), name, line)
        for number, (name, line) in enumerate(lines.items())
    ]
    reference_line(axes, view.full, "full fine-tuning", "--")
    reference_line(axes, view.zero_shot, "zero-shot", ":")
    axes.set_xscale("log", base=2)
    ticks = sorted({x for line in lines.values() for x, _ in line})
    axes.set_xticks(ticks, [f"{x:,.10g}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel(view.axis)
    references = [
        line for line in axes.get_lines() if line.get_label() in ("full fine-tuning", "zero-shot")
    ]
    legend_beside(axes, [*(h for h in handles if h is not None), *references])
    return figure


def _draw_line(
    axes: Axes, view: View, mark: Mark, name: str, line: Sequence[tuple[float, RowRuns]]
) -> object:
    x = [number for number, _ in line]
    spreads = [one.spread(view.metric, factor=view.unit.factor) for _, one in line]
    mean, sd = [s.mean for s in spreads], [s.sd for s in spreads]
    if any(sd):
        low, high = zip(*((m - d, m + d) for m, d in zip(mean, sd, strict=True)), strict=True)
        axes.fill_between(x, low, high, color=mark.colour, alpha=0.15, linewidth=0)
    axes.plot(x, mean, gid=shown(name or "rows"), **mark.curve)
    return handle(mark, name, is_line=True) if name else None
