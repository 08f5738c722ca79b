"""`table`: a study's records as a table, in the format that is wanted."""

from __future__ import annotations

import sys
from pathlib import Path

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import write_atomically
from vlmpeft.study.report.appendix.sections import make_appendix
from vlmpeft.study.report.document import Part
from vlmpeft.study.report.layout import make_table
from vlmpeft.study.report.records import Study, read_study
from vlmpeft.study.report.spec import Spec
from vlmpeft.study.report.table import Table

ENDINGS = {".md": "md", ".tex": "tex", ".csv": "csv", ".html": "html"}
_WIDEST = 10_000  # characters of a line that is not on a terminal


def show_table(
    folder: Path, spec: Spec, format: str | None, out: Path | None, *, appendix: bool = False
) -> None:
    """Print or write the table of a study, or its appendix.

    Args:
        folder: of the study, or of runs.
        spec: what the table looks like.
        format: md, tex, csv or html; default by the ending of `out`, else a table for a terminal, and Markdown for an appendix.
        out: a file; default stdout.
        appendix: in place of the table.

    Raises:
        UserError: there is no record, the spec asks for what is not there, or an appendix in a format for tables alone.
    """
    wanted = format or (_format_of(out) if out else "md" if appendix else None)
    if appendix and wanted == "csv":
        raise UserError("table: an appendix is more than one table; give --format md, tex or html")
    study = read_study(folder)
    parts: list[Part] = make_appendix(study, spec) if appendix else [make_table(study, spec)]
    if wanted is None:
        _print(parts)
    else:
        _deliver(written(parts, wanted, study), out)


def written(parts: list[Part], format: str, study: Study) -> str:
    """Parts in a format.

    Args:
        parts: of the page; of CSV, one table.
        format: md, tex, csv or html.
        study: whose they are.
    """
    if format == "md":
        from vlmpeft.study.report.formats.markdown import markdown

        return markdown(parts)
    if format == "tex":
        from vlmpeft.study.report.formats.latex import latex

        return latex(parts)
    if format == "html":
        from vlmpeft.study.report.formats.html_page import html

        return html(parts, study.info.title)
    from vlmpeft.study.report.formats.csv_lines import as_csv

    (table,) = (part for part in parts if isinstance(part, Table))
    return as_csv(table)


def _format_of(out: Path) -> str:
    ending = out.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"table: --out {out} ends with none of {', '.join(ENDINGS)}; give --format")
    return ENDINGS[ending]


def _print(parts: list[Part]) -> None:
    from vlmpeft.runtime.visible import terminal_console
    from vlmpeft.study.report.formats.terminal import terminal_notes, terminal_tables

    (table,) = (part for part in parts if isinstance(part, Table))
    console = terminal_console()
    width = console.width if console.is_terminal else None  # a file or a pipe has none
    if width is None:
        console.width = _WIDEST
    for shown in terminal_tables(table, width):
        console.print(shown)
    for line in terminal_notes(table):
        console.print(line, soft_wrap=True)


def _deliver(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
    else:
        write_atomically(out, text.encode("utf-8", "backslashreplace"))
