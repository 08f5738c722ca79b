"""The rows of a study: every pattern of its file, multiplied by its variables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.study.report.records import BASE_ROW
from vlmpeft.study.settings import Settings, fill, fill_text, names_in
from vlmpeft.study.spec import Choice, RowPattern, StudySpec, Variables
from vlmpeft.study.study_file import check_name

MOST_RUNS = 500  # a larger study is probably a grid that got out of hand
_Taken = dict[str, Choice]  # one choice of each variable


@dataclass(frozen=True)
class StudyRow:
    """A row of a study.

    Args:
        name: in records, folders and on the command line.
        title: in tables.
        group: rows of one group stand together.
        variables: label of each variable's value.
        common: dotted key -> value, of every run of the study.
        settings: dotted key -> value, of this row.
        tasks: those it is run on -> dotted key -> value, of this row there.
        seeds: those it is run with.
        search: whether its settings are searched for.
        match: whether its size is matched.
    """

    name: str
    title: str
    group: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    common: Settings = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    tasks: Mapping[str, Settings] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    search: bool = True
    match: bool = True


def expand_rows(spec: StudySpec) -> tuple[StudyRow, ...]:
    """Every row, in the order of the file; of one pattern the last variable changes first.

    Raises:
        UserError: two rows of one name, a name that is no folder's, an unknown variable, a `full` or `reference` that
            is no row.
    """
    rows = tuple(row for pattern in spec.rows for row in _rows_of(spec, pattern))
    _check_names(rows)
    names = [row.name for row in rows]
    for key, name in (("full", spec.full), ("reference", spec.reference)):
        if name is not None and name not in names:
            raise UserError(f"{key}: there is no row {name!r}.{did_you_mean(name, names)}")
    return rows


def count_runs(spec: StudySpec) -> int:
    """How many runs a study has, those of the search included, before anything is expanded."""
    tries = prod(map(len, spec.search.over.values())) * len(spec.search.seeds) if spec.search else 0
    return len(spec.bases) * sum(
        _num_rows(spec, row)
        * len(row.tasks or spec.tasks)
        * (len(row.seeds or spec.seeds) + (tries if row.search else 0))
        for row in spec.rows
    )


def check_size(spec: StudySpec) -> None:
    """Refuse a grid that got out of hand.

    Raises:
        UserError: more runs than a study usually has.
    """
    if (runs := count_runs(spec)) > MOST_RUNS:
        raise UserError(
            f"study {spec.name} has {runs:,} runs, more than {MOST_RUNS}; add --yes=true if you mean it"
        )


def _num_rows(spec: StudySpec, pattern: RowPattern) -> int:
    grids = [len(choices) for grid in (pattern.grid, spec.grid) for choices in grid.values()]
    zips = [len(next(iter(z.values()))) for z in (pattern.zip, spec.zip) if z]
    return prod(grids + zips)


def _rows_of(spec: StudySpec, pattern: RowPattern) -> Iterator[StudyRow]:
    own, common = {*pattern.grid, *pattern.zip}, {*spec.grid, *spec.zip}
    if own & common:
        raise UserError(
            f"rows.{pattern.name}: {min(own & common)!r} is a variable of the whole study, too; rename one"
        )
    _check_effect(spec, pattern)
    axes = [*_axes(pattern.grid, pattern.zip), *_axes(spec.grid, spec.zip)]
    name, title = _named(pattern.name, axes, "-"), pattern.title
    told = replace(pattern, name=name, title=title and _named(title, axes, ", "))
    for combination in itertools.product(*axes):
        yield _row(spec, told, combination)


def _check_effect(spec: StudySpec, pattern: RowPattern) -> None:
    """Raise a UserError for a variable that changes no setting: its rows would be one and the same; of a zip one has to."""
    used = _used([spec.settings, pattern.settings, pattern.tasks or {}])
    for place, grid, together in (
        (f"rows.{pattern.name}.", pattern.grid, pattern.zip),
        ("", spec.grid, spec.zip),
    ):
        if unused := [name for name in grid if name not in used]:
            raise UserError(
                f"{place}grid.{unused[0]}: no setting says {{{unused[0]}}}, so it has no effect"
            )
        if together and not used & {*together}:
            raise UserError(
                f"{place}zip: no setting says {{{next(iter(together))}}}, so it has no effect"
            )


def _used(settings: Any) -> set[str]:
    """The variables in a value and all that is in it."""
    if isinstance(settings, Mapping):
        return _used([*settings.keys(), *settings.values()])
    if isinstance(settings, list):
        return set().union(*map(_used, settings))
    return names_in(settings) if isinstance(settings, str) else set()


def _axes(grid: Variables, together: Variables) -> Iterator[list[_Taken]]:
    """Per variable of a grid, and once for all of a zip, the choices there are."""
    for name, choices in grid.items():
        yield [{name: choice} for choice in choices]
    if together:
        yield [
            dict(zip(together, choices, strict=True))
            for choices in zip(*together.values(), strict=True)
        ]


def _row(spec: StudySpec, pattern: RowPattern, combination: tuple[_Taken, ...]) -> StudyRow:
    place = f"rows.{pattern.name}"
    taken = {name: choice for axis in combination for name, choice in axis.items()}
    labels = {name: choice.label for name, choice in taken.items()}
    values = {name: choice.value for name, choice in taken.items()}
    tasks = pattern.tasks or {task: {} for task in spec.tasks}
    return StudyRow(
        name=check_name(fill_text(pattern.name, labels, place), "row"),
        title=fill_text(pattern.title or pattern.name, labels, f"{place}.title"),
        group=fill_text(pattern.group, labels, f"{place}.group") if pattern.group else None,
        variables=labels,
        common=fill(spec.settings, values, "set"),
        settings=fill(pattern.settings, values, f"{place}.set"),
        tasks={
            task: fill(settings, values, f"{place}.tasks.{task}")
            for task, settings in tasks.items()
        },
        seeds=pattern.seeds or spec.seeds,
        search=pattern.search,
        match=pattern.match,
    )


def _named(text: str, axes: list[list[_Taken]], separator: str) -> str:
    """A pattern with the variables that it does not name itself at its end; of a zip one is enough."""
    for axis in axes:
        if len(axis) > 1 and not names_in(text) & {*axis[0]}:
            text += f"{separator}{{{next(iter(axis[0]))}}}"
    return text


def _check_names(rows: tuple[StudyRow, ...]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        if row.name.casefold() == BASE_ROW:
            raise UserError(f"row {row.name!r} is named as the untouched base; take another name")
        if row.name.casefold() in seen:
            other = seen[row.name.casefold()]
            what = "have one name" if other == row.name else "are one folder on some file systems"
            raise UserError(f"rows {other!r} and {row.name!r} {what}; rename one of them")
        seen[row.name.casefold()] = row.name
