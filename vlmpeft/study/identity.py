"""Whether a finished record is what the study would make now: the same run, key by key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(identity))


def differences(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two identities differ.

    >>> list(differences({"a": {"r": 4}, "b": 1}, {"a": {"r": 8}, "b": 1}))
    [('a.r', 4, 8)]
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{place}.{number}")
    elif old != new:
        yield place, old, new


def is_accepted(key: str, accepted: Iterable[str]) -> bool:
    """Whether a key, or a group that it is in, was accepted.

    >>> is_accepted("data.train.sha256", ["data.train"]), is_accepted("data.trainer", ["data.train"])
    (True, False)
    """
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in accepted)


def described(found: Iterable[tuple[str, Any, Any]], most: int = 6) -> str:
    """Differences as one line: `key: old -> new`."""
    parts = [f"{key}: {_short(old)} -> {_short(new)}" for key, old, new in found]
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
