"""Tables on a terminal, one for each block where there are several."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from vlmpeft.study.report.table import Cell, Table


def terminal_tables(table: Table, width: int | None = None) -> Iterator[RichTable]:
    """The table; with several blocks, each with the rows' own columns beside it.

    Args:
        table: to be shown.
        width: characters of a line; columns that do not fit go into a table of their own, None is as many as there are.
    """
    blocks = list(dict.fromkeys(column.above for column in table.columns if column.above))
    for above in blocks or [()]:
        places = [n for n, column in enumerate(table.columns) if column.above in ((), above)]
        title = ": ".join((table.caption, *above))
        for some in _packed(table, places, width):
            yield _rich(table, some, title)


def _packed(table: Table, places: list[int], width: int | None) -> Iterator[list[int]]:
    """Columns that fit beside the first one."""
    first, *waiting = places
    sizes = {place: _width(table, place) for place in places}
    while True:
        some, left = [first], (width or sys.maxsize) - sizes[first] - 1
        while waiting and (sizes[waiting[0]] <= left or len(some) == 1):
            left -= sizes[waiting[0]]
            some.append(waiting.pop(0))
        yield some
        if not waiting:
            return


def _width(table: Table, place: int) -> int:
    """Characters of a column with its lines."""
    letters = table.footnotes
    texts = (_cell(row.cells[place], letters) for row in table.rows)
    return 3 + max([cell_len(table.columns[place].title), *(text.cell_len for text in texts)])


def terminal_notes(table: Table) -> Iterator[str]:
    """What stands below."""
    yield from (f"[{letter}] {why}" for why, letter in table.footnotes.items())
    yield from table.notes


def _rich(table: Table, places: list[int], title: str) -> RichTable:
    shown = RichTable(title=Text(title))
    for place in places:
        column = table.columns[place]
        shown.add_column(Text(column.title), justify="left" if column.is_text else "right")
    letters = table.footnotes
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
