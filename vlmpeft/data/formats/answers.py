"""The answer of a row: a list in a cell, a position among choices, a JSON object of columns."""

from __future__ import annotations

import decimal
import json
from collections.abc import Mapping
from typing import Any

from vlmpeft.data.formats.values import as_text, check_column, is_missing, shown, unpacked
from vlmpeft.runtime.errors import UserError


def listed(value: Any) -> Any:
    """Answers written as a JSON list in a cell, as a list; numbers, as of a box, are one answer."""
    parsed = unpacked(value)
    several = isinstance(parsed, list) and all(isinstance(entry, (str, dict)) for entry in parsed)
    return parsed if several else value


def choice_at(value: Any, choices: list[str] | None) -> Any:
    """The choice at a position; anything else as it is."""
    if not choices or not isinstance(value, int) or isinstance(value, bool):
        return value
    at = choices[value] if 0 <= value < len(choices) else None
    text = str(value) if str(value) in choices else None
    if at is None and text is None:
        raise UserError(
            f"answer {value} is neither one of the {len(choices)} choices nor a position of one, from 0"
        )
    if at is not None and text is not None and at != text:
        raise UserError(
            f"answer {value} may be the choice {text!r}, or {at!r} by its position; give the answer as text, as "
            "data.target={column} does"
        )
    return text if at is None else at


def json_target(target: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The JSON object of a `{json: ...}` target; an empty cell becomes null."""
    wanted = target["json"]
    pairs = wanted.items() if isinstance(wanted, Mapping) else ((name, name) for name in wanted)
    values = {}
    for key, column in pairs:
        check_column(row, column, "data.target")
        values[key] = None if is_missing(row[column]) else row[column]
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False, default=_as_json)
    except ValueError as error:
        raise UserError(f"data.target: {shown(values)} cannot be JSON: {error}") from error


def _as_json(value: Any) -> str | float:
    """Decimal numbers and dates of Parquet; a picture is refused."""
    return float(value) if isinstance(value, decimal.Decimal) else as_text(value, "a column")
