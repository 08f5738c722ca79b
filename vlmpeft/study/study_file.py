"""A study file, read: what is compared, on what, how often."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.shipped import shipped_configs_dir
from vlmpeft.study.report.records import BASE_ROW
from vlmpeft.study.schema import check_study
from vlmpeft.study.settings import Settings, dotted
from vlmpeft.study.spec import Choice, Match, RowPattern, Search, StudySpec
from vlmpeft.study.strict_yaml import read_strictly

STUDIES = "studies"  # folder of study files beside the configs
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@=+-]*")


def find_study(name: str) -> Path:
    """A study file by path, then under ./configs/studies, then among the shipped ones.

    Raises:
        UserError: it is nowhere.
    """
    if Path(name).is_file():
        return Path(name)
    places = [Path("configs") / STUDIES, shipped_configs_dir() / STUDIES]
    for place in places:
        for path in (place / name, place / f"{name}.yaml"):
            if path.is_file():
                return path
    known = {path.name for place in places for path in place.glob("*.yaml")}
    raise UserError(f"study file {name} does not exist.{did_you_mean(name, known)}")


def read_study_file(path: Path) -> StudySpec:
    """A study file as a value.

    Raises:
        UserError: it cannot be read, or says what no study file may say; with the file and the key.
    """
    content = read_strictly(path)
    try:
        check_study(content)
        return _spec(path.stem, content)
    except UserError as error:
        raise UserError(f"study file {path}: {error}") from error


def check_name(name: str, what: str) -> str:
    """A name that is safe as a folder's.

    Raises:
        UserError: it is not.
    """
    if not _SAFE.fullmatch(name):
        raise UserError(
            f"{what} {name!r} names a folder: letters, digits and . _ - @ = + only, a letter or a digit first"
        )
    return name


def _spec(name: str, content: Mapping[str, Any]) -> StudySpec:
    optional = {
        key: content[key]
        for key in ("full", "reference", "margin", "cluster", "skip_illegal", "recommend")
        if key in content
    }
    tasks = _tasks(content["tasks"])
    return StudySpec(
        name=check_name(name, "study"),
        title=content.get("title", name),
        bases=_bases(content["base"]),
        tasks=tasks,
        rows=tuple(_row(name, row or {}, tasks) for name, row in content["rows"].items()),
        configs=tuple(_listed(content.get("config", []))),
        settings=dotted(content.get("set")),
        seeds=tuple(content.get("seeds", (0,))),
        grid=_variables("grid", content.get("grid")),
        zip=_zipped("zip", content.get("zip")),
        search=_search(content.get("search")),
        match=_match(content.get("match_parameters")),
        **optional,
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _bases(base: Any) -> dict[str, Settings]:
    if not isinstance(base, Mapping):
        base = {Path(path).name or path: path for path in _listed(base)}
    return {
        check_name(str(name), "base"): {
            f"model.base.{key}": value
            for key, value in dotted(
                {"path": one} if isinstance(one, str) else one, "model.base"
            ).items()
        }
        for name, one in base.items()
    }


def _tasks(tasks: Any) -> dict[str, Settings]:
    if not isinstance(tasks, Mapping):
        tasks = dict.fromkeys(tasks)
    return {
        check_name(str(name), "task"): {"data.train": f"workbench:{name}"}
        if settings is None
        else dotted(settings)
        for name, settings in tasks.items()
    }


def _row(name: Any, row: Mapping[str, Any], tasks: Mapping[str, Settings]) -> RowPattern:
    name = str(name)
    if name == BASE_ROW:
        raise UserError(
            f"rows.{BASE_ROW}: this name is the untouched base's, which every study scores; take another"
        )
    for task in map(str, row.get("tasks", ())):
        if task not in tasks:
            raise UserError(f"rows.{name}.tasks: unknown task {task!r}.{did_you_mean(task, tasks)}")
    grid = _variables(f"rows.{name}.grid", row.get("grid"))
    together = _zipped(f"rows.{name}.zip", row.get("zip"))
    if both := {*grid} & {*together}:
        raise UserError(f"rows.{name}: {min(both)!r} is in grid and in zip; leave one out")
    return RowPattern(
        name,
        title=row.get("title"),
        group=row.get("group"),
        settings=dotted(row.get("set")),
        grid=grid,
        zip=together,
        tasks=_row_tasks(row["tasks"]) if "tasks" in row else None,
        seeds=tuple(row["seeds"]) if "seeds" in row else None,
        search=row.get("search", True),
        match=row.get("match", True),
    )


def _row_tasks(tasks: Any) -> dict[str, Settings]:
    if not isinstance(tasks, Mapping):
        tasks = dict.fromkeys(tasks)
    return {str(name): dotted(settings) for name, settings in tasks.items()}


def _variables(place: str, given: Mapping[str, Any] | None) -> dict[str, tuple[Choice, ...]]:
    return {name: _choices(f"{place}.{name}", values) for name, values in (given or {}).items()}


def _choices(place: str, values: Any) -> tuple[Choice, ...]:
    if isinstance(values, Mapping):
        return tuple(Choice(label, value) for label, value in values.items())
    for value in values:
        if isinstance(value, (list, dict)):
            raise UserError(
                f"{place}: {value} needs a label that can stand in names; give {{LABEL: {value}, ...}}"
            )
    return tuple(Choice(value, value) for value in values)


def _zipped(place: str, given: Mapping[str, Any] | None) -> dict[str, tuple[Choice, ...]]:
    variables = _variables(place, given)
    if len({len(choices) for choices in variables.values()}) > 1:
        sizes = ", ".join(f"{name} {len(choices)}" for name, choices in variables.items())
        raise UserError(
            f"{place}: its variables go together, so they are equally many; here are {sizes}"
        )
    return variables


def _search(search: Mapping[str, Any] | None) -> Search | None:
    if search is None:
        return None
    over = {key: tuple(v) for key, v in search.items() if key not in ("seeds", "steps", "on")}
    if not over:
        raise UserError(
            "search: it has nothing to try; give e.g. learning_rate: [3e-4, 1e-3, 3e-3]"
        )
    if {"learning_rate", "learning_rate_factor"} <= {*over}:
        raise UserError(
            "search: learning_rate and learning_rate_factor set the same rates; leave one out"
        )
    return Search(
        over, tuple(search.get("seeds", (0,))), search.get("steps"), search.get("on", "val")
    )


def _match(match: Any) -> Match | None:
    if match is None:
        return None
    if isinstance(match, int):
        return Match(match)
    if ("total" in match) == ("percent" in match):
        raise UserError("match_parameters: give total, or percent of the base's parameters")
    return Match(**match)


def with_overrides(
    spec: StudySpec, run_args: Sequence[str], match_parameters: int | None = None
) -> StudySpec:
    """A study with settings of the command line over those of its file.

    Args:
        spec: as the file has it.
        run_args: arguments of `fit`, for every run. Another base gets its own name.
        match_parameters: trainable parameters of every row; None leaves them as they are.

    Raises:
        UserError: another base in a study of several; a seed, which is the study's.
    """
    match = (
        replace(spec.match or Match(), total=match_parameters, percent=None)
        if match_parameters
        else spec.match
    )
    bases = spec.bases
    for key, value in _pairs(run_args):
        if key == "seed_everything":
            raise UserError("sweep: --seed_everything has no effect on a study; give --seeds 0,1,2")
        if key == "model.base.path":
            if len(bases) > 1:
                raise UserError(
                    f"sweep: --model.base.path={value} would make one of the study's {len(bases)} bases; write them in the file"
                )
            name = check_name(Path(value).name or value, "base")
            bases = {name: next(iter(bases.values()))}
    return replace(spec, match=match, bases=bases, overrides=tuple(run_args))


def _pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, word in enumerate(args):
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            yield key, value if equals else (*args, "")[number + 1]
