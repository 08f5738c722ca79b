"""`paper.yaml`: which rows and columns a table has, in which order, and what they are called."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.records import read_short

Names = Mapping[str, str | None]  # what there is -> what it is called; None as it calls itself


@dataclass(frozen=True)
class Pivot:
    """A grid: a row for each value of one variable of the study, a column for each value of another.

    Args:
        rows: label of the variable that rows are of.
        columns: label of the variable that columns are of.
        cell: the column that every cell shows.
    """

    rows: str
    columns: str
    cell: str = "score"


@dataclass(frozen=True)
class Spec:
    """What a table looks like. What is None is as the study has it.

    Args:
        columns: in order, with headers.
        rows: in order, with titles; others are left out.
        groups: in order, with headings.
        bases: in order, with titles; others are left out.
        tasks: in order, with titles; others are left out.
        metrics: in order, with titles; default the primary one of each task.
        decimals: of scores in percent; other scores have two more.
        caption: above the table.
        label: that LaTeX refers to it by.
        reference: the row that others are compared with.
        family: p-values that Holm adjusts together: those of a block (one base, task and metric), of the whole table, or
            of the rows named, block by block; then no other row is tested.
        pivot: a grid in place of a list of rows.
    """

    columns: Names | None = None
    rows: Names | None = None
    groups: Names = field(default_factory=dict)
    bases: Names | None = None
    tasks: Names | None = None
    metrics: Names | None = None
    decimals: int = 1
    caption: str | None = None
    label: str | None = None
    reference: str | None = None
    family: str | tuple[str, ...] = "block"
    pivot: Pivot | None = None


_NAMES = {
    "oneOf": [
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
        {
            "type": "object",
            "additionalProperties": {"type": ["string", "null"]},
            "minProperties": 1,
        },
    ]
}
_LISTS = ("columns", "rows", "groups", "bases", "tasks", "metrics")
_PIVOT = {"rows": {"type": "string"}, "columns": {"type": "string"}, "cell": {"type": "string"}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        **dict.fromkeys(_LISTS, _NAMES),
        "decimals": {"type": "integer", "minimum": 0, "maximum": 6},
        "caption": {"type": "string"},
        "label": {"type": "string", "pattern": "^[A-Za-z0-9:._-]+$"},
        "reference": {"type": "string"},
        "family": {
            "oneOf": [
                {"enum": ["block", "table"]},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        },
        "pivot": {
            "type": "object",
            "properties": _PIVOT,
            "required": ["rows", "columns"],
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}


def read_spec(path: Path | str) -> Spec:
    """A spec file.

    Raises:
        UserError: it is not there, no YAML, or says something that is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"spec {path} is not a file; give a YAML file, see docs/studies.md")
    try:
        content = yaml.safe_load(read_short(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"spec {path} is not valid YAML: {error}") from error
    content = {} if content is None else content
    if problem := _problem(content):
        raise UserError(f"spec {path}: {problem}")
    return _spec(content)


def narrowed(spec: Spec, metrics: Collection[str], tasks: Collection[str]) -> Spec:
    """The spec, for these metrics and tasks only, where any are named."""
    if metrics:
        spec = replace(spec, metrics={name: (spec.metrics or {}).get(name) for name in metrics})
    if tasks:
        spec = replace(spec, tasks={name: (spec.tasks or {}).get(name) for name in tasks})
    return spec


def chosen(names: Names | None, known: Mapping[str, str], what: str) -> dict[str, str]:
    """Name -> title, of those that a spec names, in its order; all that are known if it names none.

    Raises:
        UserError: a name is not known.
    """
    if names is None:
        return dict(known)
    for name in names:
        if name not in known:
            raise UserError(f"table: there is no {what} {name!r}.{did_you_mean(name, known)}")
    return {name: known[name] if title is None else title for name, title in names.items()}


def _spec(content: dict[str, Any]) -> Spec:
    values: dict[str, Any] = {
        key: _names(value) if key in _LISTS else value for key, value in content.items()
    }
    if "pivot" in values:
        values["pivot"] = Pivot(**content["pivot"])
    if isinstance(values.get("family"), list):
        values["family"] = tuple(values["family"])
    return Spec(**values)


def _names(value: list[str] | dict[str, str | None]) -> dict[str, str | None]:
    return dict.fromkeys(value) if isinstance(value, list) else value


def _problem(content: Any) -> str:
    """The first way in which a spec is none; empty if it is one."""
    from jsonschema import Draft202012Validator

    errors = list(Draft202012Validator(SCHEMA).iter_errors(content))
    if not errors:
        return ""
    error = min(errors, key=lambda one: one.validator != "additionalProperties")  # a typo first
    where = error.json_path.removeprefix("$").removeprefix(".")
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema["properties"]  # type: ignore[index]
        word = next(str(key) for key in error.instance if key not in known)
        return f"unknown key {'.'.join(filter(None, (where, word)))}.{did_you_mean(word, known)}"
    if error.validator == "oneOf" and where in _LISTS:
        return f"{where} is neither a list of names nor name: title; see docs/studies.md"
    return f"{where or 'the file'}: {' '.join(error.message.split())[:200]}; see docs/studies.md"
