"""Whether records and study files have the shape that tables and plots read; they may come from anywhere, or be half of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmpeft.runtime.errors import UserError

SPLITS = ("test", "val", "retention")  # the first that there is, is the reported one
ANY, NUMBER, TEXT = "any", "a number", "text"

# A shape is a word of the above, {key: shape} with "*" for every other key, [shape] of a list's values, or (shape,) of what may be
# null. Keys that are not there, or not in the shape, are no matter.
_SCORES = {"*": NUMBER}
_RECORD = {
    "base": ({"id": (TEXT,), "bits": ({"*": ANY},)},),
    "base_name": (TEXT,),
    "components": ({"*": {"strategies": [{"name": TEXT, "trainable": NUMBER, "learning_rate": (NUMBER,)}]}},),
    "config": ({"model": ({"plan": ({"*": ANY},)},), "data": ({"*": ANY},), "trainer": ({"*": ANY},)},),
    "controls": ({"*": _SCORES},),
    "data": ({"*": {"conversations": (NUMBER,), "sha256": (TEXT,)}},),
    "identity": ({"template": (TEXT,)},),
    "metrics": {"*": {"*": _SCORES}},
    "primary": TEXT,
    "row": (TEXT,),
    "search": ({
        "tried": (NUMBER,),
        "chosen": ({"*": ANY},),
        "at_edge": ([TEXT],),
        "candidates": ([{"settings": {"*": ANY}, "scores": ([NUMBER],)}],),
    },),
    "seconds": ({"*": NUMBER},),
    "task": (TEXT,),
    **dict.fromkeys(("decoding", "git", "versions"), ({"*": ANY},)),
    **dict.fromkeys(
        ("adapter_bytes", "peak_memory_bytes", "seed", "steps", "supervised_tokens", "total", "trainable"), (NUMBER,)
    ),
}  # fmt: skip
_ROW = {"name": TEXT, "title": TEXT, "group": (TEXT,), "variables": {"*": ANY}, "illegal": {"*": TEXT}}  # fmt: skip
_STUDY = {
    "name": TEXT, "title": TEXT, "rows": [_ROW], "tasks": [TEXT], "bases": [TEXT], "seeds": [NUMBER], "margin": NUMBER,
    "cluster": TEXT, "reference": (TEXT,), "full": (TEXT,), "search": ({"*": ANY},), "match_parameters": ({"*": ANY},),
}  # fmt: skip


def check_record(record: Mapping[str, Any], place: object) -> None:
    """A finished record has scores, and its parts are what they are called.

    Args:
        record: of a finished run.
        place: of it, for the message.

    Raises:
        UserError: with the first part that is not.
    """
    problem = _mismatch(record, _RECORD, "")
    if not problem and not {*SPLITS} & {*(record.get("metrics") or {}).get("tuned", {})}:
        problem = f"has no scores on {' or '.join(SPLITS)}"
    if problem or "primary" not in record:
        raise UserError(
            f"record {place} {problem or 'names no primary metric'}; remove its folder and run it again"
        )


def check_study(content: Any, place: object) -> None:
    """The same of a `study.json`.

    Raises:
        UserError: with the first part that is of another shape.
    """
    if problem := _mismatch(content, _STUDY, ""):
        raise UserError(f"study file {place} {problem}; run the study again")


def _mismatch(value: Any, shape: Any, place: str) -> str:
    """The first part of a value that has not its shape; empty if there is none."""
    if isinstance(shape, tuple):
        return "" if value is None else _mismatch(value, shape[0], place)
    if isinstance(shape, dict):
        return _mismatch_of_mapping(value, shape, place)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"has no list as {place}"
        return _first(_mismatch(one, shape[0], f"{place}[{n}]") for n, one in enumerate(value))
    kinds = {TEXT: str, NUMBER: (int, float), ANY: object}
    return "" if isinstance(value, kinds[shape]) else f"has as {place} not {shape}"


def _mismatch_of_mapping(value: Any, shape: dict[str, Any], place: str) -> str:
    if not isinstance(value, Mapping):
        return f"has no mapping as {place}" if place else "is no mapping"
    rest = shape.get("*")
    return _first(
        _mismatch(inner, shape.get(key, rest), f"{place}.{key}" if place else str(key))
        for key, inner in value.items()
        if key in shape or rest is not None
    )


def _first(problems: Any) -> str:
    return next((problem for problem in problems if problem), "")
