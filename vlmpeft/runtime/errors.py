"""Errors that a user can act on: one line each, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something in the user's hands is wrong. The message names the value, the place and the next move."""


class UnsupportedArchitecture(UserError):
    """The model has no part that one of the components could be."""


class GateFailed(RuntimeError):
    """A check that guards a result did not pass; exit code 4."""


class Interrupted(RuntimeError):
    """The run was stopped and can be resumed; exit code 3."""


def error_line(error: BaseException) -> str:
    """What went wrong in one line, with its type unless it is told to users as it is.

    >>> error_line(KeyError("a"))
    "KeyError: 'a'"
    """
    line = " ".join(str(error).split())
    if isinstance(error, (UserError, GateFailed, Interrupted)) and line:
        return line
    return ": ".join(filter(None, (type(error).__name__, line)))


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """' Did you mean X?' if something close to `word` exists, else the options there are.

    >>> did_you_mean("LoRa", ["LoRA", "Full"])
    ' Did you mean LoRA?'
    >>> did_you_mean("zzz", ["LoRA", "Full"])
    ' There is: Full, LoRA.'
    """
    known = sorted(options)
    by_lower = {option.lower(): option for option in known}
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    if close:
        return f" Did you mean {by_lower[close[0]]}?"
    return f" There is: {', '.join(known)}." if known else ""
