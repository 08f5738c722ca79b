"""Component x method as a heat map, every cell with its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vlmpeft.study.report.plots.canvas import GREY, figure_of, new_panels, shown
from vlmpeft.study.report.plots.factors import (
    COMPONENT,
    METHOD,
    components_trained,
    methods_used,
    name_of,
)
from vlmpeft.study.report.plots.view import NotDrawableError, RowRuns, Spread, View
from vlmpeft.study.report.settings import written

_MOST_PANELS = 6


@dataclass(frozen=True)
class Grid:
    """Rows of a study as cells.

    Args:
        down: name of the variable of lines.
        across: name of the variable of columns.
        cells: (panel, line, column) -> its row.
    """

    down: str
    across: str
    cells: Mapping[tuple[str, str, str], RowRuns]

    def values(self, axis: int) -> list[str]:
        """What there is along an axis of the cells' keys, in the order of the study."""
        return list(dict.fromkeys(key[axis] for key in self.cells))


def draw_heat_map(view: View) -> Figure:
    """Mean and deviation of the score in every cell of two variables; a panel a value of further ones.

    Raises:
        NotDrawableError: rows differ in fewer than two ways, or two rows are in one cell.
    """
    grid = grid_of(view.rows)
    panels, lines, columns = (grid.values(axis) for axis in range(3))
    factor = view.unit.factor
    spreads = {key: one.spread(view.metric, factor=factor) for key, one in grid.cells.items()}
    means = [spread.mean for spread in spreads.values() if spread.n]
    name = "cividis_r" if view.is_lower_better else "cividis"  # even in lightness, so read in grey
    colours = ScalarMappable(Normalize(min(means), max(*means, min(means) + 0.1)), name)
    width, height = max(3.0, 1.05 * len(columns)), 1.5 + 0.52 * max(3, len(lines))
    size = (1.9 + width * len(panels), height)
    every = new_panels(view.title, panels, size)
    for axes, panel in zip(every, panels, strict=True):
        cells = {key[1:]: spread for key, spread in spreads.items() if key[0] == panel}
        _fill(axes, cells, lines, columns, colours)
        axes.set_xlabel(shown(grid.across))
    every[0].set_ylabel(shown(grid.down))
    figure = figure_of(every[0])
    figure.colorbar(colours, ax=every, label=view.axis.replace("; ", "\n"), shrink=0.9)
    return figure


def grid_of(rows: Sequence[RowRuns]) -> Grid:
    """Rows by two of the study's variables, or by the components and the methods of their records.

    Raises:
        NotDrawableError: rows differ in fewer than two ways, or two rows are in one cell.
    """
    variables = _independent(rows)
    if len(variables) < 2:
        return _grid_of_records(rows)
    across = next((v for v in variables if name_of(v) in COMPONENT), variables[0])
    rest = [v for v in variables if v != across]
    down = next((v for v in rest if name_of(v) in METHOD), rest[0])
    kept = [one for one in rows if {down, across} <= one.row.variables.keys()]
    cells = [(_value(one, down), _value(one, across)) for one in kept]
    further = [
        v for v in rest if v != down and _differs_within(cells, [_value(one, v) for one in kept])
    ]
    panels = [", ".join(f"{name_of(v)}={_value(one, v)}" for v in further) for one in kept]
    keys = [(panel, *cell) for panel, cell in zip(panels, cells, strict=True)]
    return _checked(Grid(name_of(down), name_of(across), _cells(keys, kept)))


def _differs_within(cells: Sequence[tuple[str, str]], values: Sequence[str]) -> bool:
    """Whether rows of one cell have several values."""
    return len({*zip(cells, values, strict=True)}) > len({*cells})


def _value(one: RowRuns, variable: str) -> str:
    return written(one.row.variables.get(variable, "-"))


def _independent(rows: Sequence[RowRuns]) -> list[str]:
    """Variables of several values, without those that only follow an earlier one, as alpha follows r."""
    found: list[str] = []
    for variable in dict.fromkeys(v for one in rows for v in one.row.variables):
        values = [_value(one, variable) for one in rows]
        follows = any(
            len(set(zip(earlier, values, strict=True))) == len(set(earlier))
            for earlier in ([_value(one, v) for one in rows] for v in found)
        )
        if len(set(values)) > 1 and not follows:
            found.append(variable)
    return found


def _grid_of_records(rows: Sequence[RowRuns]) -> Grid:
    trained = [one for one in rows if components_trained(one.runs[0])]
    keys = [("", methods_used(one.runs[0]), components_trained(one.runs[0])) for one in trained]
    return _checked(Grid("method", "component", _cells(keys, trained)))


def _cells(
    keys: Sequence[tuple[str, str, str]], rows: Sequence[RowRuns]
) -> dict[tuple[str, str, str], RowRuns]:
    cells: dict[tuple[str, str, str], RowRuns] = {}
    for key, one in zip(keys, rows, strict=True):
        if key in cells:
            where = " x ".join(part for part in key[1:])
            raise NotDrawableError(
                f"rows {cells[key].row.name} and {one.row.name} are both {where}"
            )
        cells[key] = one
    return cells


def _checked(grid: Grid) -> Grid:
    if len(grid.values(1)) < 2 or len(grid.values(2)) < 2:
        raise NotDrawableError("rows do not differ in two ways, such as component and method")
    if len(grid.values(0)) > _MOST_PANELS:
        raise NotDrawableError(f"{len(grid.values(0))} panels are more than {_MOST_PANELS}")
    return grid


def _fill(
    axes: Axes,
    spreads: Mapping[tuple[str, str], Spread],
    lines: Sequence[str],
    columns: Sequence[str],
    colours: ScalarMappable,
) -> None:
    axes.grid(visible=False)
    axes.set_xticks(range(len(columns)), [shown(c, 24) for c in columns])
    axes.set_yticks(range(len(lines)), [shown(line, 28) for line in lines])
    if max(map(len, columns)) > 12:
        axes.tick_params("x", rotation=30)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    for y, line in enumerate(lines):
        for x, column in enumerate(columns):
            spread = spreads.get((line, column), Spread(np.nan, 0, 0))
            _cell(axes, x, y, spread, colours)


def _cell(axes: Axes, x: int, y: int, spread: Spread, colours: ScalarMappable) -> None:
    corner, face, text, ink = (x - 0.5, y - 0.5), "#f2f2f2", "-", GREY
    if spread.n:
        red, green, blue, _ = colours.to_rgba(np.array([spread.mean]))[0]
        face = (red, green, blue)
        ink = "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.46 else "black"
        text = (
            f"{spread.mean:.3g}"
            if spread.n < 2
            else f"{spread.mean:.1f}\n\N{PLUS-MINUS SIGN} {spread.sd:.1f}"
        )
    hatch = None if spread.n else "///"
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor="white", hatch=hatch))
    axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=8)
