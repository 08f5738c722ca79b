"""Some cells of a study, by name: `row=lora*,full task=format`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.study.resolving import ResolvedCell, ResolvedStudy

KEYS = ("row", "task", "base", "group")


def select(
    study: ResolvedStudy, only: Sequence[str] = (), seeds: str | None = None
) -> tuple[ResolvedCell, ...]:
    """The cells that are meant, with the seeds that are.

    Args:
        study: all there is.
        only: KEY=A,B,... each; a cell has to fit every key. Names may be globs.
        seeds: instead of those of the file, e.g. 0,1,2,3.

    Raises:
        UserError: an unknown key or name, or what is no list of seeds.
    """
    names = _names(study)
    wanted = _wanted(only, names)
    groups = {row.name: row.group for row in study.rows}

    def fits(one: ResolvedCell) -> bool:
        cell = one.cell
        has = {"row": cell.row, "task": cell.task, "base": cell.base, "group": groups[cell.row]}
        return all(has[key] in chosen for key, chosen in wanted.items())

    chosen = tuple(one for one in study.cells if fits(one))
    if not chosen:
        raise UserError(f"--only {' '.join(only)}: no cell is in all of these")
    if seeds is None:
        return chosen
    numbers = read_seeds(seeds)
    return tuple(replace(one, cell=replace(one.cell, seeds=numbers)) for one in chosen)


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds out of `0,1,2`.

    Raises:
        UserError: something else.

    >>> read_seeds("0,2")
    (0, 2)
    """
    words = [word.strip() for word in text.strip("[]").split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--seeds {text}: give whole numbers with commas, e.g. 0,1,2")
    return tuple(dict.fromkeys(int(word) for word in words))


def _names(study: ResolvedStudy) -> dict[str, list[str]]:
    found = {
        "row": [row.name for row in study.rows],
        "task": list(study.spec.tasks),
        "base": list(study.spec.bases),
        "group": [row.group for row in study.rows if row.group],
    }
    return {key: list(dict.fromkeys(names)) for key, names in found.items()}


def _wanted(only: Iterable[str], names: Mapping[str, list[str]]) -> dict[str, set[str]]:
    wanted: dict[str, set[str]] = {}
    for word in only:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise UserError(
                f"--only {word}: give KEY=NAME,NAME with one of {', '.join(KEYS)}, e.g. row=lora*"
            )
        for pattern in value.split(","):
            wanted.setdefault(key, set()).update(_matches(key, pattern, names[key]))
    return wanted


def _matches(key: str, pattern: str, names: list[str]) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise UserError(f"--only {key}={pattern}: no such {key}.{did_you_mean(pattern, names)}")
    return found
