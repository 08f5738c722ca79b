"""When JSON values count as equal, and how many fields of two objects are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from vlmpeft.data.json_schema import FieldPath, parse_json

Values = dict[FieldPath, Any]


def canonical(value: Any) -> Hashable:
    """Equal for values that count as equal, and usable as a key.

    >>> canonical([1, " a"]) == canonical(["a", 1.0])
    True
    >>> canonical(True) == canonical(1)
    False
    """
    if isinstance(value, str):
        return "text", value.strip()
    if isinstance(value, list):
        return "list", frozenset(Counter(canonical(element) for element in value).items())
    if isinstance(value, dict):
        return "object", frozenset((key, canonical(child)) for key, child in value.items())
    return ("truth", value) if isinstance(value, bool) else ("number or null", value)


def read_fields(text: str) -> Values:
    """The fields of a text that is one JSON object.

    Raises:
        ValueError: it is not.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {type(value).__name__}")
    return flatten(value)


def flatten(value: dict[str, Any], above: FieldPath = ()) -> Values:
    """Field path -> value; an empty object is a value.

    >>> flatten({"a": 1, "b": {"c": [2]}})
    {('a',): 1, ('b', 'c'): [2]}
    """
    fields: Values = {}
    for key, child in value.items():
        path = (*above, key)
        fields |= flatten(child, path) if isinstance(child, dict) and child else {path: child}
    return fields


def field_f1(got: Values | None, want: Values) -> float:
    """F1 over (field, value) pairs; 0 for an answer without an object."""
    if got is None:
        return 0.0
    if not got and not want:
        return 1.0
    return 2 * sum(is_hit(path, got, want) for path in want) / (len(got) + len(want))


def same_fields(got: Values | None, want: Values) -> bool:
    """Whether all fields are equal."""
    return (
        got is not None
        and got.keys() == want.keys()
        and all(is_hit(path, got, want) for path in want)
    )


def is_hit(path: FieldPath, got: Values, want: Values) -> bool:
    """Whether the field is there on both sides, with equal values."""
    return path in got and path in want and canonical(got[path]) == canonical(want[path])


def field_hits(generated: str, references: Sequence[str]) -> dict[FieldPath, bool]:
    """Which fields of the best reference an answer has right; none if no reference is a JSON object.

    >>> field_hits('{"a": 1, "b": 2}', ['{"a": 1, "b": 3}'])
    {('a',): True, ('b',): False}
    """
    try:
        wanted = [read_fields(text) for text in references]
    except ValueError:
        return {}
    try:
        got = read_fields(generated)
    except ValueError:
        got = None
    want = max(wanted, key=lambda fields: field_f1(got, fields))
    return {path: got is not None and is_hit(path, got, want) for path in want}


def bag(fields: Values, path: FieldPath, many: bool) -> Counter[Hashable]:
    """The values of one field: the elements of its list if it has many, none if it is not there."""
    if path not in fields:
        return Counter()
    value = fields[path]
    return Counter(map(canonical, value if many and isinstance(value, list) else [value]))
