"""Tables on a terminal, one for each block where there are several."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.table import Table as RichTable
from rich.text import Text

from vlmpeft.study.report.table import Cell, Table


def terminal_tables(table: Table, width: int | None = None) -> Iterator[RichTable]:
    """The table; with several blocks one for each, with the rows' own columns beside it.

    Args:
        table: to be shown.
        width: characters of a line; columns that do not fit go into a table of their own, None is as many as there are.
    """
    letters = table.footnotes
    for panel in table.panels():
        title = ": ".join(dict.fromkeys((table.caption, panel.caption)))
        for places in _packed(panel, width or sys.maxsize):
            yield _rich(panel, places, title, letters)


def _packed(table: Table, width: int) -> Iterator[list[int]]:
    """Places of columns that fit beside the first one."""
    sizes = [3 + table.width_of(place) for place in range(len(table.columns))]  # line, footnote
    places, left = [0], width - sizes[0]
    for place in range(1, len(sizes)):
        if sizes[place] > left and len(places) > 1:
            yield places
            places, left = [0], width - sizes[0]
        places.append(place)
        left -= sizes[place]
    yield places


def terminal_notes(table: Table) -> Iterator[str]:
    """What stands below."""
    yield from (f"[{letter}] {why}" for why, letter in table.footnotes.items())
    yield from table.notes


def _rich(table: Table, places: list[int], title: str, letters: dict[str, str]) -> RichTable:
    shown = RichTable(title=Text(title))
    for place in places:
        column = table.columns[place]
        shown.add_column(Text(column.title), justify="left" if column.is_text else "right")
    for group, rows in table.groups():
        if group:
            shown.add_section()
            shown.add_row(Text(group, style="italic"))
        for row in rows:
            shown.add_row(*(_cell(row.cells[place], letters) for place in places))
    return shown


def _cell(cell: Cell, letters: dict[str, str]) -> Text:
    text = Text(cell.text, style="bold" if cell.verdict == "better" else "")
    text.append(f" {cell.mark}" if cell.mark else "", style="not bold")
    return text.append("".join(f" [{letters[why]}]" for why in cell.reasons), style="not bold")
