"""What a study would do, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vlmpeft.study.budget import duration

_GB = 10**9
_Cells = Sequence[dict[str, Any]]


def print_outline(console: Console, outline: dict[str, Any]) -> None:
    """A table a base, and what stands beside it.

    Args:
        console: where.
        outline: of `study.outline`.
    """
    cells: _Cells = outline["cells"]
    for base in dict.fromkeys(cell["base"] for cell in cells):
        console.print(_table(outline["title"], base, [c for c in cells if c["base"] == base]))
    for line in _footer(outline):
        console.print(line, soft_wrap=True)


def _table(title: str, base: str, cells: _Cells) -> Table:
    is_matched = any(cell["knobs"] for cell in cells)
    table = Table(title=f"{title}: {base}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("row", overflow="fold")
    for name in ("trainable", "%"):
        table.add_column(name, justify="right", no_wrap=True)
    if is_matched:
        table.add_column("matched by", overflow="fold")
    for name in ("runs", "done", "GB", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in dict.fromkeys(cell["row"] for cell in cells):
        mine = [cell for cell in cells if cell["row"] == row]
        table.add_row(row, *_columns(mine, is_matched))
    return table


def _columns(cells: _Cells, is_matched: bool) -> Iterator[str]:
    """One row of the table, over its tasks."""
    legal = [cell for cell in cells if not cell["illegal"]]
    if not legal:
        yield from ("-",) * (7 if is_matched else 6)
        return
    yield f"{legal[0]['trainable']:,}"
    yield f"{legal[0]['percent']:.2f}"
    if is_matched:
        yield ", ".join(_knobs(legal[0]["knobs"] or {})) or "-"
    search, reported, done = (
        sum(cell["runs"][key] for cell in legal) for key in ("search", "reported", "done")
    )
    yield f"{search}+{reported}" if search else str(reported)
    yield str(done)
    yield _peak(legal)
    seconds = [cell["seconds"] for cell in legal]
    yield "-" if None in seconds else duration(sum(seconds))


def _knobs(knobs: dict[str, int]) -> Iterator[str]:
    """Of one component without its name, which the row has."""
    for name, value in knobs.items():
        yield f"{name if len(knobs) > 1 else name.rpartition('.')[2]}={value}"


def _peak(cells: _Cells) -> str:
    """The largest over the tasks; an upper bound where another row was forecast."""
    peaks = [cell for cell in cells if cell["peak_bytes"] is not None]
    if not peaks:
        return "-"
    most = max(peaks, key=lambda cell: cell["peak_bytes"])
    sign = "" if most["peak_of"] == most["row"] else "<"
    return f"{sign}{most['peak_bytes'] / _GB:.1f}"


def _footer(outline: dict[str, Any]) -> Iterator[str]:
    cells: _Cells = outline["cells"]
    runs, match = outline["runs"], outline["match_parameters"]
    yield (
        f"{runs['search'] + runs['reported']} runs: {runs['search']} of the search + {runs['reported']} reported; "
        f"{runs['done']} of them done in {outline['folder']}"
    )
    if match:
        size = (
            f"{match['percent']:g} % of the base as" if match["percent"] else f"{match['total']:,}"
        )
        yield f"matched to {size} trainable parameters within {100 * match['tolerance']:g} %"
    if seconds := sum(cell["seconds"] or 0 for cell in cells):
        yield f"time: of one process that makes them one after another, {duration(seconds)} in all; --jobs N shares it"
    if any(cell["peak_bytes"] for cell in cells):
        yield (
            "GB: the most a run takes at data.max_length (see estimate); < is the forecast of a larger row"
        )
    yield from dict.fromkeys(_reasons(cells))
    if legal := next((cell for cell in cells if not cell["illegal"]), None):
        yield f"{legal['row']} by hand: {legal['command']}"


def _reasons(cells: _Cells) -> Iterator[str]:
    """Why a row is a dash, once a base."""
    for cell in cells:
        if cell["illegal"]:
            yield f"{cell['row']} on {cell['base']}: {cell['illegal']}"
