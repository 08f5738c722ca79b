"""What a study file may say, as JSON Schema, and what is wrong with one in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmpeft.runtime.errors import UserError, did_you_mean

_NAME = {"type": "string", "minLength": 1}
_NAMES = {"type": "array", "items": _NAME, "minItems": 1, "uniqueItems": True}
_SETTINGS = {"type": ["object", "null"]}
_TASKS = {
    "anyOf": [
        _NAMES,
        {"type": "object", "minProperties": 1, "additionalProperties": _SETTINGS},
    ]
}
_SEEDS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "minItems": 1,
    "uniqueItems": True,
}
_VARIABLES = {
    "type": "object",
    "propertyNames": {"pattern": r"^[A-Za-z_]\w*$"},
    "additionalProperties": {
        "anyOf": [{"type": "array", "minItems": 1}, {"type": "object", "minProperties": 1}]
    },
}
_ROW = {
    "type": ["object", "null"],
    "properties": {
        "title": _NAME,
        "group": _NAME,
        "set": _SETTINGS,
        "grid": _VARIABLES,
        "zip": _VARIABLES,
        "tasks": _TASKS,
        "seeds": _SEEDS,
        "search": {"type": "boolean"},
        "match": {"type": "boolean"},
    },
    "additionalProperties": False,
}
_RATES = {
    "type": "array",
    "items": {"type": "number", "exclusiveMinimum": 0},
    "minItems": 1,
    "uniqueItems": True,
}
_SEARCH = {
    "type": "object",
    "properties": {
        "learning_rate": _RATES,
        "learning_rate_factor": _RATES,
        "seeds": _SEEDS,
        "steps": {"type": "integer", "minimum": 1},
        "on": {"enum": ["val"]},
    },
    "patternProperties": {r"\.": {"type": "array", "minItems": 1, "uniqueItems": True}},
    "additionalProperties": False,
}
_MATCH = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {
            "type": "object",
            "properties": {
                "total": {"type": "integer", "minimum": 1},
                "percent": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 100},
                "tolerance": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            },
            "additionalProperties": False,
        },
    ]
}
STUDY_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A study of vlmpeft",
    "type": "object",
    "properties": {
        "title": _NAME,
        "base": {
            "anyOf": [
                _NAME,
                _NAMES,
                {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": {"type": ["object", "string"]},
                },
            ]
        },
        "config": {"anyOf": [_NAME, _NAMES]},
        "set": _SETTINGS,
        "tasks": _TASKS,
        "seeds": _SEEDS,
        "rows": {"type": "object", "minProperties": 1, "additionalProperties": _ROW},
        "grid": _VARIABLES,
        "zip": _VARIABLES,
        "full": _NAME,
        "reference": _NAME,
        "search": _SEARCH,
        "match_parameters": _MATCH,
        "margin": {"type": "number", "exclusiveMinimum": 0},
        "cluster": _NAME,
        "skip_illegal": {"type": "boolean"},
        "recommend": {"type": "boolean"},
    },
    "required": ["base", "tasks", "rows"],
    "additionalProperties": False,
}
_KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "null": "nothing",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def check_study(content: Any) -> None:
    """Refuse what the schema does not allow.

    Raises:
        UserError: the key, what it says, and what is allowed there.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(STUDY_SCHEMA).iter_errors(_with_text_keys(content)))
    if error is not None:
        place = ".".join(str(part) for part in error.absolute_path)
        raise UserError(_told(error, place))


def _with_text_keys(value: Any) -> Any:
    """The same with keys that are text, as JSON has them: YAML may read a name as a number."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(one) for key, one in value.items()}
    return [_with_text_keys(one) for one in value] if isinstance(value, list) else value


def _told(error: Any, place: str) -> str:
    """One line for an error of jsonschema's."""
    rule, value, at = error.validator, error.instance, f"{place}: " if place else ""
    if rule == "additionalProperties" and isinstance(value, Mapping):
        known = error.schema.get("properties", {})
        odd = next(key for key in value if str(key) not in known)
        return f"{at}unknown key {str(odd)!r}.{did_you_mean(str(odd), known)}"
    if rule == "required":
        missing = next(key for key in error.validator_value if key not in value)
        return f"{at}there is no {missing!r}; every study has {', '.join(error.validator_value)}"
    if rule == "type":
        return f"{at}{_short(value)} is not {_kinds(error.validator_value)}"
    if rule == "enum":
        return f"{at}{_short(value)} is not one of {', '.join(map(str, error.validator_value))}"
    if rule == "anyOf":
        kinds = [kind for one in error.validator_value for kind in _kinds_of(one)]
        return f"{at}{_short(value)} is not {_kinds(kinds)}"
    return at + _rule(rule, error.validator_value, value)


def _rule(rule: str, limit: Any, value: Any) -> str:
    told = {
        "minItems": f"an empty list; give at least {limit}",
        "minProperties": "it is empty; give at least one",
        "uniqueItems": f"{_short(value)} has an entry twice",
        "minimum": f"{_short(value)} is less than {limit}",
        "exclusiveMinimum": f"{_short(value)} is not above {limit}",
        "exclusiveMaximum": f"{_short(value)} is not below {limit}",
        "minLength": "it is empty",
        "pattern": f"{_short(value)} is no name of a variable; take letters, digits and _",
    }
    return told.get(rule, f"{_short(value)} does not fit {rule} {limit}")


def _kinds_of(schema: Mapping[str, Any]) -> list[str]:
    kind = schema.get("type", [])
    return [kind] if isinstance(kind, str) else list(kind)


def _kinds(kinds: str | list[str]) -> str:
    names = [kinds] if isinstance(kinds, str) else list(dict.fromkeys(kinds))
    return " or ".join(_KINDS[name] for name in names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
