"""`halving.json` and `halving.md`: what successive halving agreed on, and what it found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmpeft.runtime.records import SCHEMA, read_json_or_none, write_atomically, write_json
from vlmpeft.study.halving import Rung, num_rungs, ranking
from vlmpeft.study.halving_fields import ON, Field
from vlmpeft.study.report.formats.markdown import escaped

FILE = "halving.json"
WARNING = (
    "A search on validation data: the arms were trained for unequal numbers of steps and dropped on the way. It says what is worth "
    "running, and is no table of results."
)


def agreed_steps(folder: Path, head: Mapping[str, Any]) -> int | None:
    """Steps of the first rung, if this halving has begun; None if not, or if the file is of another one."""
    found = read_json_or_none(folder / FILE)
    if not isinstance(found, dict):
        return None
    is_same = found.get("agreed") == json.loads(json.dumps(head))
    return found.get("first_steps") if is_same else None


def write_agreed(folder: Path, study: str, head: Mapping[str, Any], first_steps: int) -> None:
    """Leave for other processes what the rungs are."""
    begun = {"schema": SCHEMA, "study": study, "what": WARNING, "status": "begun"}
    write_json(folder / FILE, begun | {"first_steps": first_steps, "agreed": dict(head)})


def found_of(fields: Sequence[Field], rungs: Sequence[Sequence[Rung]]) -> list[dict[str, Any]]:
    """Field by field: its rungs, and the arms in order, as plain data."""
    return [_found(field, mine) for field, mine in zip(fields, rungs, strict=True)]


def _found(field: Field, rungs: Sequence[Rung]) -> dict[str, Any]:
    ranked = ranking(rungs)
    return {
        "base": field.base,
        "task": field.task,
        "num_rungs": num_rungs(len(field.arms)),
        "is_over": rungs[-1].is_over,
        "rungs": [
            {
                "steps": rung.steps,
                "is_over": rung.is_over,
                "results": [field.arms[arm].name | _scores(rung, arm) for arm in rung.arms],
            }
            for rung in rungs
        ],
        "ranking": [
            field.arms[arm].name | {"rung": rung.number, "steps": rung.steps} | _scores(rung, arm)
            for arm, rung in ranked
        ],
    }


def _scores(rung: Rung, arm: int) -> dict[str, Any]:
    result = rung.results.get(arm)
    if result is None:
        return {"score": None, "loss": None, "failed": arm in rung.results}
    return {"score": result.score, "loss": round(result.loss, 6), "failed": False}


def write_found(folder: Path, study: str, found: list[dict[str, Any]], metric: str) -> list[Path]:
    """Write both files; returns their paths."""
    begun = read_json_or_none(folder / FILE) or {}
    status = "complete" if all(one["is_over"] for one in found) else "budget spent"
    content = begun | {"status": status, "on": ON, "metric": metric, "found": found}
    write_json(folder / FILE, content)
    text = "\n".join(_markdown(study, found, metric)) + "\n"
    write_atomically(folder / "halving.md", text.encode("utf-8", "backslashreplace"))
    return [folder / FILE, folder / "halving.md"]


def _markdown(study: str, found: list[dict[str, Any]], metric: str) -> Iterator[str]:
    yield f"# Successive halving of {escaped(study)}"
    yield ""
    yield WARNING
    for one in found:
        yield ""
        yield f"## {escaped(one['task'])} on {escaped(one['base'])}"
        yield ""
        yield f"| | {' | '.join(map(escaped, columns(metric)))} |"
        yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
        for number, line in enumerate(lines(one), 1):
            yield f"| {number} | " + " | ".join(map(escaped, line)) + " |"
        if not one["is_over"]:
            yield ""
            yield "The budget was spent before its last rung was over."


def columns(metric: str) -> tuple[str, ...]:
    """What `lines` has."""
    return "row", "settings", "rung", "steps", f"val {metric}", "val loss"


def lines(one: Mapping[str, Any]) -> Iterator[list[str]]:
    """The ranking of a field as text."""
    for arm in one["ranking"]:
        settings = ", ".join(f"{key}={value}" for key, value in arm["settings"].items()) or "-"
        scores = ["failed", "-"]
        if arm["score"] is not None:
            scores = [f"{arm['score']:.4f}", f"{arm['loss']:.4f}"]
        rung = f"{arm['rung'] + 1} of {one['num_rungs']}"
        yield [arm["row"], settings, rung, str(arm["steps"]), *scores]
