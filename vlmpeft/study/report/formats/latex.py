r"""LaTeX with booktabs, to be \input: what a table needs is in its first line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from vlmpeft.runtime.visible import visible
from vlmpeft.study.report.document import Heading, Listing, Paragraph, Part
from vlmpeft.study.report.table import NOTHING, Cell, Table

PREAMBLE = r"% needs \usepackage{booktabs} and \usepackage{graphicx}"
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "`": r"\`{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "[": "{[}", "]": "{]}",  # else an option of the \\ before it
    "\N{DAGGER}": r"$\dagger$", "\N{MINUS SIGN}": "$-$", "\N{PLUS-MINUS SIGN}": r"$\pm$",
}  # fmt: skip
_LONG = 45  # characters of a cell that is set in several lines
_LISTED = 80  # characters of a line of a listing that fit on a page
_END = r"\end{verbatim}"
_WIDEST = 150  # characters of a line that can still be read when it is shrunk; a wider table is one panel a block
# wide tables shrink to the width of the line, others stay as they are
_SHRINK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def latex(parts: Iterable[Part]) -> str:
    """The parts as LaTeX."""
    lines = (line for part in parts for line in (*_lines(part), ""))
    return "\n".join([PREAMBLE, *lines]).rstrip() + "\n"


def escaped(text: str) -> str:
    r"""Text on one line that LaTeX sets as it is; a sign before a number is a minus.

    >>> escaped("50% of a_b & {c} \\ +- -2.5")
    '50\\% of a\\_b \\& \\{c\\} \\textbackslash{} $\\pm$ $-$2.5'
    """
    text = visible(" ".join(text.split()))
    text = re.sub(r"(?<![\w.)-])-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<!\S)\+-(?!\S)", "\N{PLUS-MINUS SIGN}", text)
    return "".join(_SPECIAL.get(character) or _letter(character) for character in text)


def _letter(character: str) -> str:
    """A character that every LaTeX sets; another one by its number."""
    is_latin = character <= "\xff" and unicodedata.normalize("NFD", character)[0].isascii()
    return character if is_latin else f"{{[}}U+{ord(character):04X}{{]}}"


def _lines(part: Part) -> Iterator[str]:
    match part:
        case Heading():
            yield rf"\subsection*{{{escaped(part.text)}}}"
        case Paragraph():
            yield escaped(part.text) + r"\par"
        case Listing():
            yield from _listing(part.text)
        case Table():
            yield from _table_lines(part)


def _listing(text: str) -> Iterator[str]:
    """Word for word, so that BibTeX can be copied out; what LaTeX could not set that way, escaped."""
    lines = text.splitlines()
    if all(line.isascii() and line.isprintable() and len(line) < _LISTED for line in lines) and _END not in text:  # fmt: skip
        yield from (r"{\footnotesize", r"\begin{verbatim}", *lines, _END, "}")
    else:
        yield from (r"{\footnotesize\ttfamily\raggedright", *map(_indented, lines), "}")


def _indented(line: str) -> str:
    spaces = len(line) - len(line.lstrip())
    return r"\noindent" + rf"\hspace*{{{spaces / 2:g}em}}" + escaped(line) + r"\par"


def _table_lines(table: Table) -> Iterator[str]:
    yield from (r"\begin{table}[htbp]", r"\centering")
    if table.caption:
        yield rf"\caption{{{escaped(table.caption)}}}"
        yield rf"\label{{{table.label}}}"
    panels = table.panels() if table.width > _WIDEST else [table]
    for number, panel in enumerate(panels):
        if number:
            yield r"\par\medskip"
        if panel is not table:
            yield rf"{{\small {escaped(panel.caption)}}}\par\smallskip"
        yield from _tabular(panel, table.footnotes)
    yield from (r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize")
    for why, letter in table.footnotes.items():
        yield rf"\textsuperscript{{{letter}}} {escaped(why)}\par"
    yield from (rf"{escaped(note)}\par" for note in table.notes)
    yield from (r"\end{minipage}", r"\end{table}")


def _tabular(table: Table, letters: dict[str, str]) -> Iterator[str]:
    yield _SHRINK
    yield rf"\begin{{tabular}}{{{''.join(_kind(table, n) for n in range(len(table.columns)))}}}"
    yield from (r"\toprule", *_headings(table), r"\midrule", *_body(table, letters), r"\bottomrule")
    yield r"\end{tabular}}"


def _kind(table: Table, place: int) -> str:
    """How a column is set: long texts in several lines."""
    if not table.columns[place].is_text:
        return "r"
    is_long = place > 0 and table.width_of(place) > _LONG
    return r"p{.4\linewidth}" if is_long else "l"


def _headings(table: Table) -> Iterator[str]:
    for spans in table.headings():
        cells, rules, first = [], [], 1
        for title, width in spans:
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(title)}}}")
            rules += [rf"\cmidrule(lr){{{first}-{first + width - 1}}}"] if title else []
            first += width
        yield f"{' & '.join(cells)} \\\\ {''.join(rules)}"
    heads = (
        escaped(column.title) if column.is_text else rf"\multicolumn{{1}}{{r}}{{{escaped(column.title)}}}"
        for column in table.columns
    )  # fmt: skip
    yield f"{' & '.join(heads)} \\\\"


def _body(table: Table, letters: dict[str, str]) -> Iterator[str]:
    for number, (group, rows) in enumerate(table.groups()):
        if number:
            yield r"\addlinespace"
        if group:
            yield rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\emph{{{escaped(group)}}}}} \\"
        yield from (" & ".join(_cell(c, letters) for c in row.cells) + r" \\" for row in rows)


def _cell(cell: Cell, letters: dict[str, str]) -> str:
    text = "--" if cell.text == NOTHING else escaped(cell.text)
    text = rf"\textbf{{\boldmath {text}}}" if cell.verdict == "better" else text
    marks = escaped(cell.mark) + ",".join(letters[reason] for reason in cell.reasons)
    return text + (rf"\textsuperscript{{{marks}}}" if marks else "")
