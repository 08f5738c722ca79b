"""Values from a file against the types that a dataclass's fields declare."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vlmpeft.runtime.errors import UserError, did_you_mean


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Refuse values that a dataclass would take without a look.

    Raises:
        UserError: an unknown field, or a value of another type, with the field's name.
    """
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name != "trains"}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"there is no {name!r}.{did_you_mean(name, hints)}")
        if not _fits(value, hints[name]):
            raise UserError(f"{name}={value!r}: it is {_shown(hints[name])}"[:300])


def _fits(value: Any, hint: Any) -> bool:
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in options
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in options)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(v, options[0]) for v in value)
    if origin is not None:  # Mapping[str, float] and the like
        return isinstance(value, origin) and all(_fits(v, options[1]) for v in value.values())
    if hint is None or hint is types.NoneType:
        return value is None
    numbers = (int, float) if hint is float else (hint,)
    return isinstance(value, numbers) and (hint is bool or not isinstance(value, bool))


def _shown(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint) if get_origin(hint) is None else hint)
