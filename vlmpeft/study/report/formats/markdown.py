"""GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from vlmpeft.runtime.visible import visible
from vlmpeft.study.report.document import Heading, Listing, Paragraph, Part
from vlmpeft.study.report.table import Cell, Column, Table

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_ACTING = re.compile(
    r"[\\`*|~$]|(?<!\w)_|_(?!\w)|^[\[#]|(?<=\])[(\[:]"
)  # links begin with ](, ][ or ]:


def markdown(parts: Iterable[Part]) -> str:
    """The parts as Markdown, with aligned columns."""
    return "\n".join(line for part in parts for line in (*_lines(part), "")).rstrip() + "\n"


def escaped(text: str) -> str:
    r"""Text on one line that Markdown shows as it is.

    >>> escaped("a|b <script> q_proj *x* 5% \\")
    'a\\|b &lt;script&gt; q_proj \\*x\\* 5% \\\\'
    """
    text = _ACTING.sub(r"\\\g<0>", visible(" ".join(text.split())))
    return re.sub("[&<>]", lambda found: _ENTITIES[found.group()], text)


def _lines(part: Part) -> Iterator[str]:
    match part:
        case Heading():
            yield f"## {escaped(part.text)}"
        case Paragraph():
            yield escaped(part.text)
        case Listing():
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", part.text)), default=0))
            yield from (fence, *map(visible, part.text.splitlines()), fence)
        case Table():
            yield from _table_lines(part)


def _table_lines(table: Table) -> Iterator[str]:
    if table.caption:
        yield from (escaped(table.caption), "")
    head = [_header(column) for column in table.columns]
    body = list(_body(table))
    widths = [max(3, *(len(line[place]) for line in (head, *body))) for place in range(len(head))]
    yield _joined(head, widths, table.columns)
    yield _joined([_rule(c, w) for c, w in zip(table.columns, widths, strict=True)], widths, table.columns)  # fmt: skip
    yield from (_joined(line, widths, table.columns) for line in body)
    below = [f"- [{letter}] {escaped(why)}" for why, letter in table.footnotes.items()]
    below += [f"- {escaped(note)}" for note in table.notes]
    if below:
        yield from ("", *below)


def _body(table: Table) -> Iterator[list[str]]:
    letters = table.footnotes
    for group, rows in table.groups():
        if group:
            yield [f"*{escaped(group)}*", *[""] * (len(table.columns) - 1)]
        yield from ([_cell(cell, letters) for cell in row.cells] for row in rows)


def _cell(cell: Cell, letters: dict[str, str]) -> str:
    text = escaped(cell.text)
    text = f"**{text}**" if cell.verdict == "better" else text
    notes = "".join(f" [{letters[reason]}]" for reason in cell.reasons)
    return f"{text}{f' {cell.mark}' if cell.mark else ''}{notes}"


def _header(column: Column) -> str:
    return escaped(": ".join(filter(None, (*column.above, column.title))))


def _rule(column: Column, width: int) -> str:
    return "-" * width if column.is_text else "-" * (width - 1) + ":"


def _joined(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = (
        cell.ljust(width) if column.is_text else cell.rjust(width)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    )
    return f"| {' | '.join(padded)} |"
