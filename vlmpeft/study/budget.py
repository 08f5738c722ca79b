"""A budget of time, as the command line gives it."""

from __future__ import annotations

import re

from vlmpeft.runtime.errors import UserError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def read_seconds(text: str) -> float:
    """Seconds out of a number with its unit.

    Raises:
        UserError: something else.

    >>> read_seconds("90s"), read_seconds("30m"), read_seconds("1.5h")
    (90.0, 1800.0, 5400.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds:
        raise UserError(f"--budget {text}: give a time above 0 with its unit, e.g. 90s, 30m or 2h")
    return seconds


def duration(seconds: float) -> str:
    """For people, to the minute.

    >>> duration(20), duration(3 * 3600 + 299)
    ('1 min', '3 h 05 min')
    """
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{max(1, minutes)} min"
