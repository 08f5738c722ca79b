"""Text files of records: JSON, JSON lines, CSV and TSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmpeft.errors import UserError

# called with each record's error; raises, or counts it and goes on
OnError = Callable[[UserError], None]
Records = Iterator[tuple[str, Any]]  # (place, record)

TABLES = (".csv", ".tsv")
_LONGEST_CELL = 2**28  # characters; a data URI may be long, csv's own limit is 131,072


def read_json(file: Path, on_error: OnError) -> Records:
    """(place, record) of a JSON list or of JSON lines, whatever the file is called."""
    text = _read_text(file)
    if file.suffix != ".jsonl" and not text.lstrip().startswith("{"):
        yield from _json_list(file, text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            on_error(UserError(f"{file}:{number}: not valid JSON: {_reason(error)}"))
            continue
        yield f"{file}:{number}", record


def _json_list(file: Path, text: str) -> Records:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not valid JSON: {_reason(error)}") from error
    except RecursionError as error:
        raise UserError(f"{file}: not valid JSON: {_reason(error)}") from error
    if not isinstance(records, list):
        raise UserError(
            f"data file {file} must hold a list of conversations, not {type(records).__name__}"
        )
    for number, record in enumerate(records):
        yield f"{file} record {number}", record


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "nested too deeply"


def read_table(file: Path, on_error: OnError) -> Records:
    """(place, row) of a CSV or TSV file with a header line; `;` and tabs are recognised as separators.

    Raises:
        UserError: no header, or a column name that is empty or there twice.
    """
    csv.field_size_limit(_LONGEST_CELL)
    text = _read_text(file)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_separator(file, text), strict=True
    )
    header: list[str] = []
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise UserError(f"{file}:{reader.line_num}: not a valid table: {error}") from error
        if not header:
            header = _checked_header(file, cells)
        elif len(cells) == len(header):
            yield f"{file}:{reader.line_num}", dict(zip(header, cells, strict=True))
        elif cells:
            on_error(
                UserError(
                    f"{file}:{reader.line_num}: {len(cells)} cells, but the header has {len(header)}"
                )
            )
    if not header:
        raise UserError(f"data file {file} is empty: the first line of a table names its columns")


def _separator(file: Path, text: str) -> str:
    """The separator that is most frequent in the header line."""
    header = text[: text.find("\n")] if "\n" in text else text
    candidates = "\t" if file.suffix == ".tsv" else ",;\t|"
    return max(candidates, key=header.count)


def _checked_header(file: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    wrong = next((name for name in header if not name or header.count(name) > 1), None)
    if wrong is not None:
        reason = f"column {wrong!r} is there twice" if wrong else "a column has no name"
        raise UserError(f"{file}:1: {reason}; the first line of a table names its columns")
    return header


def _read_text(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 if it starts with its mark, as Excel writes it."""
    try:
        content = file.read_bytes()
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"data file {file} cannot be read as UTF-8 text: {error.reason} at byte {error.start}; save it "
            "as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"data file {file} cannot be read: {error.strerror}") from error
