"""Values of columns and fields: which are empty, how they read as text, what an item keeps of them."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import string
from collections.abc import Iterable, Mapping
from typing import Any

from vlmpeft.data.conversation import Image
from vlmpeft.data.formats.limits import MOST_ENTRIES
from vlmpeft.runtime.errors import UserError, did_you_mean

_LONGEST_EXTRA = 200  # characters of a column that an item keeps for grouping
_LONGEST_SHOWN = 60  # characters of a value in a message
_DATES = (dt.date, dt.time, dt.timedelta, decimal.Decimal)  # Parquet has them


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, and not the whole of a long one."""
    sliced = isinstance(value, (str, bytes, list))
    text = repr(value[: _LONGEST_SHOWN + 1] if sliced else value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def names(row: Iterable[str]) -> list[str]:
    """The first columns of a row, as messages name them."""
    return [printable(name[:40]) for name in list(row)[:20]]


def printable(text: str) -> str:
    """The text with half surrogate pairs, as in file names that are not UTF-8, as their escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str, most: int = 300) -> str:
    r"""A text from elsewhere as a message can hold it: on one line, printable, and not too long.

    >>> one_line("no\n  such \x1b[1mrole")
    'no such \\x1b[1mrole'
    """
    line = " ".join(text[: 4 * most].split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= most else line[:most] + "..."


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: null, NaN, no text or no entries."""
    return value is None or value == "" or value == [] or value != value


def as_text(value: Any, what: str) -> str:
    """A cell as text without spaces around it; "" of an empty one.

    Raises:
        UserError: it is a list, an object or bytes.
    """
    if is_missing(value):
        return ""
    if isinstance(value, (list, dict, tuple, bytes, Image)):
        kind = "bytes" if isinstance(value, (bytes, Image)) else f"a {type(value).__name__}"
        raise UserError(f"{what} holds {kind}, not text: {shown(value)}")
    return str(value).strip()


def check_column(row: Mapping[str, Any], name: str, key: str) -> None:
    """Refuse a column that a row does not have.

    Raises:
        UserError: with the closest name that there is.
    """
    if name not in row:
        raise UserError(f"{key}: there is no column {shown(name)}.{did_you_mean(name, names(row))}")


def fill(template: str, row: Mapping[str, Any], key: str) -> str:
    """A template with the row's values in it; between braces is a column's name and nothing else.

    >>> fill("a {colour} {{part}}", {"colour": "red"}, "data.prompt")
    'a red {part}'

    Raises:
        UserError: no such column, a stray brace, or a value that is not text.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"{key} {shown(template)}: {error}; a brace itself is written twice"
        ) from error
    filled = []
    for literal, name, spec, conversion in pieces:
        filled.append(literal)
        if name is not None:
            # str.format would look attributes up, and would know formats
            whole = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            filled.append(_cell(row, whole, key))
    return "".join(filled).strip()


def _cell(row: Mapping[str, Any], name: str, key: str) -> str:
    if name not in row and not name.isidentifier():
        raise UserError(
            f"{key}: there is no column {shown(name)}; between braces is the name of a column, without "
            f"attributes or formats, and a brace itself is written twice. Columns: {', '.join(names(row))}"
        )
    check_column(row, name, key)
    return as_text(row[name], f"{key}: column {shown(name)}")


def unpacked(value: Any) -> Any:
    """A list written as JSON in a cell, as a list."""
    if isinstance(value, str) and (text := value.strip()).startswith("[") and text.endswith("]"):
        if sum(map(text.count, ",[{")) > MOST_ENTRIES:
            raise UserError(
                f"a list of more than {MOST_ENTRIES:,} entries in a cell: {shown(text)}; write fewer"
            )
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return value
    return value


def kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that can go into a record of results as they are; dates as text, pictures left out."""
    plain = {
        key: str(value) if isinstance(value, _DATES) else value for key, value in record.items()
    }
    return {key: value for key, value in plain.items() if _is_plain(value)}


def is_small(value: Any) -> bool:
    """Whether a cell is a number or a short text, as columns are that one groups by."""
    return isinstance(value, (int, float)) or (
        isinstance(value, str) and len(value) <= _LONGEST_EXTRA and not value.startswith("data:")
    )


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):  # one of which is UnicodeEncodeError
        return False
    return True
