"""How every plot looks: marks that need no colour, one style, and files that are the same from the same records."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from vlmpeft.runtime.visible import visible

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color: told apart by everybody; without the yellow, which is too light for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
_NOT_IN_XML = re.compile("[\ufffe\uffff]")
GREY = "#555555"
_LEGEND_LINES = 24  # of a column

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib
    "font.size": 9,
    "figure.dpi": 144,  # of PNG
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.2,
    "errorbar.capsize": 2.5,
    "svg.hashsalt": "vlmpeft",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a row may be called "$x$"
}


@dataclass(frozen=True)
class Mark:
    """How a row is drawn, the same in every plot; marker and filling alone tell 24 rows apart."""

    colour: str
    marker: str
    line: Any
    is_filled: bool

    @classmethod
    def of(cls, position: int) -> Mark:
        """The mark of the row at a position of the study."""
        marker, line = MARKERS[position % len(MARKERS)], LINES[position % len(LINES)]
        is_filled = (position // len(MARKERS)) % 2 == 0
        return cls(COLOURS[position % len(COLOURS)], marker, line, is_filled)

    @property
    def points(self) -> dict[str, Any]:
        """Arguments of a plot of points."""
        face = self.colour if self.is_filled else "white"
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face}

    @property
    def curve(self) -> dict[str, Any]:
        """Arguments of a plot of a line with points on it."""
        return {**self.points, "linestyle": self.line}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The style of every plot, for figures that are made inside; not that of the drawer's matplotlibrc."""
    plain = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"}
    with mpl.rc_context(cast(Any, plain | _STYLE)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it is drawn as a box
        yield


def new_figure(title: str, width: float = 5.4, height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure of inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(shown(title, round(14 * width)), loc="left")
    return figure, axes


def new_panels(title: str, panels: Sequence[str], size: tuple[float, float]) -> list[Axes]:
    """Axes side by side in one figure of inches, each with its own title, on one vertical scale."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(shown(title, round(12 * size[0])), x=0.01, ha="left", fontsize=10)
    every = list(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0])
    for axes, panel in zip(every, panels, strict=True):
        axes.set_title(shown(panel))
    return every


def figure_of(axes: Axes) -> Figure:
    """The figure that axes are in."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def shown(text: object, longest: int = 48) -> str:
    """A text from a record, in a plot: one line, no characters that act, not too long."""
    line = _NOT_IN_XML.sub("?", visible(" ".join(str(text).split())))
    line = line if len(line) <= longest else line[: longest - 3] + "..."
    return f" {line}" if line.startswith("_") else line  # matplotlib hides labels that begin so


def draw_point(
    axes: Axes, name: str, mark: Mark, x: float, y: float, x_sd: float = 0, y_sd: float = 0
) -> None:
    """A row as a point with its deviations; none is drawn for 0."""
    drawn = axes.errorbar(x, y, xerr=x_sd or None, yerr=y_sd or None, elinewidth=0.9, **mark.points)
    drawn.lines[0].set_gid(shown(name))


def reference_line(axes: Axes, value: float, label: str, line: Any) -> None:
    """A horizontal line that rows are compared with; nothing for nan."""
    if value == value:
        axes.axhline(value, color=GREY, linestyle=line, linewidth=1.1, label=label, zorder=1)


def legend_beside(axes: Axes, handles: Sequence[Any] = (), title: str | None = None) -> None:
    """A legend to the right of the axes, where it hides nothing; columns of at most 24 lines."""
    handles = list(handles) or axes.get_legend_handles_labels()[0]
    if not handles:
        return
    columns = -(-len(handles) // _LEGEND_LINES)
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, ncols=columns,
        title=title, alignment="left",
    )  # fmt: skip
    figure = figure_of(axes)
    lines = min(len(handles), _LEGEND_LINES) + (2 if title else 1)
    longest = max(len(str(one.get_label())) for one in handles)
    figure.set_figheight(max(figure.get_figheight(), 0.6 + 0.17 * lines))
    figure.set_figwidth(figure.get_figwidth() + columns * (0.6 + 0.068 * longest))


def log_heights(axes: Axes) -> None:
    """A vertical log axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def count_axis(axes: Axes) -> None:
    """A horizontal log axis of counts, with ticks such as 50k and 2M."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def short_count(value: float) -> str:
    """A count in thousands, millions or billions.

    >>> [short_count(value) for value in (12, 1500, 200_000, 7e9)]
    ['12', '1.5k', '200k', '7B']
    """
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def handle(mark: Mark, label: str, *, is_line: bool = False) -> Line2D:
    """An entry of a legend."""
    arguments = mark.curve if is_line else {**mark.points, "linestyle": "none"}
    return Line2D([], [], label=shown(label), **arguments)


def settle(figure: Figure) -> None:
    """Decide once where everything stands; every file would do it again."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG, without a date."""
    buffer = io.BytesIO()
    with style():
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def as_png(figure: Figure) -> bytes:
    """The figure as PNG, without the name of the program."""
    buffer = io.BytesIO()
    with style():
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
