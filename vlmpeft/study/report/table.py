"""A table as a value: typed cells, what stands above and below them; no format yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

Verdict = Literal["better", "worse", "equivalent"]
NOTHING = "-"
MARKS: Mapping[str, str] = {"worse": "\N{DAGGER}", "equivalent": "="}  # better is bold


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: as people read it, in plain ASCII: `94.7 +- 2.0`. Every format shows this text and no other.
        values: part -> number or text at full precision, for CSV: {"mean": 0.947, "sd": 0.02}.
        verdict: of a score beside the reference's, where that is settled.
        reasons: why the cell is as it is; each becomes a footnote.
    """

    text: str = NOTHING
    values: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        return MARKS.get(self.verdict or "", "")


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: as a spec calls it.
        title: as people read it.
        above: titles of the blocks that it belongs to, outermost first: base, task, metric.
        is_text: left-aligned.
    """

    name: str
    title: str
    above: tuple[str, ...] = ()
    is_text: bool = False


@dataclass(frozen=True)
class TableRow:
    """One row; `group` is the heading that it stands under."""

    name: str
    group: str | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table with what stands above and below it.

    Args:
        caption: above it.
        label: that LaTeX refers to it by.
        columns: of which the first has the rows' titles.
        rows: in order.
        notes: below it.
        records: one flat record for each line of a CSV file.
    """

    caption: str
    label: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    records: tuple[Mapping[str, Any], ...] = ()

    @property
    def footnotes(self) -> dict[str, str]:
        """Reason -> its letter, in reading order."""
        reasons = (reason for row in self.rows for cell in row.cells for reason in cell.reasons)
        return {reason: _letter(number) for number, reason in enumerate(dict.fromkeys(reasons))}

    @property
    def width(self) -> int:
        """Characters of a line."""
        return sum(self.width_of(place) for place in range(len(self.columns)))

    def width_of(self, place: int) -> int:
        """Characters of a column, with a space on either side."""
        texts = (row.cells[place].text for row in self.rows)
        return 2 + max(map(len, (self.columns[place].title, *texts)))

    def panels(self) -> list[Table]:
        """One table for each block of columns, each with the rows' own columns; itself if there are no blocks."""
        blocks = list(dict.fromkeys(column.above for column in self.columns if column.above))
        return [self._panel(above) for above in blocks] or [self]

    def _panel(self, above: tuple[str, ...]) -> Table:
        places = [n for n, column in enumerate(self.columns) if column.above in ((), above)]
        return replace(
            self,
            caption=", ".join(above),
            columns=tuple(replace(self.columns[place], above=()) for place in places),
            rows=tuple(replace(r, cells=tuple(r.cells[p] for p in places)) for r in self.rows),
        )

    def groups(self) -> Iterator[tuple[str | None, list[TableRow]]]:
        """Rows that follow one another under one heading."""
        for group, rows in groupby(self.rows, key=lambda row: row.group):
            yield group, list(rows)

    def headings(self) -> Iterator[list[tuple[str, int]]]:
        """Lines of headings above the columns' own, as (title, number of columns), '' for none."""
        depth = max((len(column.above) for column in self.columns), default=0)
        for level in range(depth):
            path = [column.above[: level + 1] for column in self.columns]
            spans = [(key, len(list(same))) for key, same in groupby(path)]
            yield [(key[level] if len(key) > level else "", width) for key, width in spans]


def _letter(number: int) -> str:
    """A, b, ..., z, aa, ab, ...

    >>> _letter(0), _letter(25), _letter(26), _letter(52)
    ('a', 'z', 'aa', 'ba')
    """
    quotient, rest = divmod(number, 26)
    return (_letter(quotient - 1) if quotient else "") + chr(ord("a") + rest)


def text_table(
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    caption: str = "",
    notes: Sequence[str] = (),
    numbers: Collection[str] = (),
) -> Table:
    """A table of texts.

    Args:
        heads: titles of the columns.
        lines: one text a column.
        caption: above it.
        notes: below it.
        numbers: heads of columns that stand to the right.
    """
    columns = tuple(Column(head, head, is_text=head not in numbers) for head in heads)
    rows = tuple(TableRow("", None, tuple(map(Cell, line))) for line in lines)
    return Table(caption, "", columns, rows, tuple(notes))
