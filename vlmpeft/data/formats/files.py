"""Text files of records: JSON, JSON lines, CSV and TSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from vlmpeft.data.formats.limits import check_columns
from vlmpeft.data.formats.values import shown
from vlmpeft.runtime.errors import UserError

# called with each record's error; raises, or counts it and goes on
OnError = Callable[[UserError], None]
Records = Generator[tuple[str, Any]]  # (place, record)

TABLES = (".csv", ".tsv")
_LONGEST_CELL = 2**28  # characters; a data URI may be long, csv's own limit is 131,072
_LONGEST_HEADER = 2**16


def read_json(file: Path, on_error: OnError) -> Records:
    """(place, record) of a JSON list or of JSON lines, whatever the file is called.

    Raises:
        UserError: neither, or no text.
    """
    text = _read_text(file)
    if file.suffix.lower() != ".jsonl" and not _begins_with_a_record(text):
        yield from _json_list(file, text)
        return
    # not splitlines: JSON may hold U+2028 and other line ends of Unicode as they are
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            on_error(UserError(f"{file}:{number}: not valid JSON: {_reason(error)}"))
            continue
        yield f"{file}:{number}", record


def _begins_with_a_record(text: str) -> bool:
    """Whether the first line is an object of its own, as in JSON lines."""
    first = text.lstrip().partition("\n")[0].rstrip()
    return first.startswith("{") and first.endswith("}")


def _json_list(file: Path, text: str) -> Records:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{file}{line}: not valid JSON: {_reason(error)}") from error
    if not isinstance(records, list):
        keys = f" with the keys {shown(list(records))}" if isinstance(records, dict) else ""
        raise UserError(
            f"data file {file} must hold a list of conversations or one on each line, not "
            f"{type(records).__name__}{keys}"
        )
    for number, record in enumerate(records):
        yield f"{file} record {number}", record


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def read_table(file: Path, on_error: OnError) -> Records:
    """(place, row) of a CSV or TSV file with a header line; `,` `;` `|` and tabs are recognised as separators.

    Raises:
        UserError: no header, a column name that is empty or there twice, a quote that is never closed.
    """
    header: list[str] = []
    for line, cells in _rows(file, _read_text(file), on_error):
        if not header:
            header = _checked_header(f"{file}:{line}", cells)
        elif len(cells) == len(header):
            yield f"{file}:{line}", dict(zip(header, cells, strict=True))
        else:
            on_error(
                UserError(
                    f"{file}:{line}: {len(cells)} cells, but the header has {len(header)}; a cell with a "
                    "separator in it is written in quotes"
                )
            )
    if not header:
        raise UserError(f"data file {file} is empty: the first line of a table names its columns")


def _rows(file: Path, text: str, on_error: OnError) -> Iterator[tuple[int, list[str]]]:
    """(line it begins on, cells) of every row that is not blank."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_separator(file, text), strict=True
    )
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = UserError(f"{file}:{line}: not a valid table: {error}")
            if str(error) == "unexpected end of data":  # what follows the quote is lost
                raise UserError(f"{found}: a quote that begins here is never closed") from error
            on_error(found)
            continue
        if cells:
            yield line, cells


def _separator(file: Path, text: str) -> str:
    """The separator that is most frequent in the header line, outside of quotes."""
    beginning = re.sub(r'"[^"]*"', "", text[:_LONGEST_HEADER]).lstrip("\r\n")
    header = re.split(r"[\r\n]", beginning, maxsplit=1)[0]
    candidates = "\t" if file.suffix.lower() == ".tsv" else ",;\t|"
    return max(candidates, key=header.count)


def _checked_header(place: str, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    try:
        check_columns(len(header))
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    times = Counter(header)
    wrong = next((name for name in header if not name or times[name] > 1), None)
    if wrong is None:
        return header
    number = header.index(wrong) + 1
    reason = (
        f"column {shown(wrong)} is there twice" if wrong else f"a column has no name ({number})"
    )
    hint = " (pandas: to_csv(..., index=False))" if number == 1 and not wrong else ""
    raise UserError(f"{place}: {reason}; the first line of a table names its columns{hint}")


def _read_text(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 if it starts with its mark, as Excel writes it."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"data file {file} cannot be read: {error.strerror}") from error
    encoding = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "UTF-8"
    try:
        text = content.decode("utf-8-sig" if encoding == "UTF-8" else encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"data file {file} cannot be read as {encoding} text: {error.reason} at byte {error.start}; "
            "save it as UTF-8 (other files are known by .parquet and .tar)"
        ) from error
    if (at := text.find("\0")) >= 0:
        line = text.count("\n", 0, at) + 1
        raise UserError(f"{file}:{line}: a NUL byte: it is damaged, or no UTF-8; save it as UTF-8")
    return text
