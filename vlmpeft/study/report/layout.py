"""A study and a spec as a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vlmpeft.study.report import cost_cells
from vlmpeft.study.report.columns import COLUMNS, DEFAULT, Kind
from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.entries import Block, Entry, without_folders
from vlmpeft.study.report.info import Row
from vlmpeft.study.report.notes import notes
from vlmpeft.study.report.pivot import pivoted
from vlmpeft.study.report.records import Study
from vlmpeft.study.report.spec import Spec, chosen
from vlmpeft.study.report.table import NOTHING, Cell, Column, Table, TableRow

_NO_LABEL = r"[^A-Za-z0-9:._-]"  # characters
_LEVELS = ("row", "base", "task", "metric")


@dataclass(frozen=True)
class Placed:
    """A column in its place: what it shows, and of which block."""

    column: Column
    kind: Kind
    block: Block


def make_table(study: Study, spec: Spec = Spec()) -> Table:  # noqa: B008  a value
    """The table of a study.

    Args:
        study: its records.
        spec: columns, rows, names, order.

    Raises:
        UserError: the spec names a row, column, task, base or metric that is not there.
    """
    contents = Contents(study, spec)
    kinds = _kinds(contents)
    placed = _filled(contents, list(_places(contents, kinds)))
    with_headings = "group" not in kinds
    rows = tuple(
        TableRow(row.name, row.group if with_headings else None, _cells(contents, row, placed))
        for row in contents.rows
        if _is_there(contents, row)
    )
    table = Table(
        caption=spec.caption or study.info.title,
        label=spec.label or f"tab:{re.sub(_NO_LABEL, '-', study.info.name)}",
        columns=tuple(place.column for place in placed),
        rows=rows,
        notes=tuple(notes(contents, {place.column.name for place in placed})),
        records=tuple(_records(contents, kinds)),
    )
    return pivoted(table, contents, kinds) if spec.pivot else table


def _kinds(contents: Contents) -> dict[str, Kind]:
    """The columns of the spec, with their headers."""
    labels = dict.fromkeys(label for row in contents.study.info.rows for label in row.variables)
    own = {n: Kind(n, "row", cost_cells.variable(n), "a variable", True) for n in labels}
    known = own | dict(COLUMNS)
    spec = contents.spec
    wanted = dict.fromkeys(DEFAULT) if spec.columns is None else dict(spec.columns)
    if spec.pivot:
        wanted[spec.pivot.cell] = wanted.get(spec.pivot.cell)
    titles = chosen(wanted, {name: kind.title for name, kind in known.items()}, "column")
    return {
        name: Kind(title, known[name].scope, known[name].cell, "", known[name].is_text)
        for name, title in titles.items()
    }


def _places(contents: Contents, kinds: Mapping[str, Kind]) -> Iterator[Placed]:
    """Columns of rows, then of each base, each task, each metric; what there is one of, takes no level of its own."""
    single = _single_levels(contents)
    at = {name: _level(kind.scope, single) for name, kind in kinds.items()}
    done = set[tuple[str, ...]]()
    for block in contents.blocks:
        titles = {
            "base": contents.bases[block.base],
            "task": contents.tasks[block.task],
            "metric": contents.metrics[block.task][block.metric],
        }
        path = tuple(zip(_LEVELS[1:], (block.base, block.task, block.metric), strict=True))
        for depth, level in enumerate(_LEVELS):
            key = (level, *(value for _, value in path[:depth]))
            if key in done:
                continue
            done.add(key)
            above = tuple(titles[name] for name, _ in path[:depth] if name not in single)
            for name, kind in kinds.items():
                if at[name] == level:
                    title = _header(contents, kind, block, "metric" in single)
                    yield Placed(Column(name, title, above, kind.is_text), kind, block)


def _single_levels(contents: Contents) -> set[str]:
    most = max((len(of) for of in contents.metrics.values()), default=1)
    counts = {"base": len(contents.bases), "task": len(contents.tasks), "metric": most}
    return {level for level, count in counts.items() if count <= 1}


def _level(scope: str, single: set[str]) -> str:
    level = _LEVELS.index(scope)
    while level and _LEVELS[level] in single:
        level -= 1
    return _LEVELS[level]


def _header(contents: Contents, kind: Kind, block: Block, is_only_metric: bool) -> str:
    title = contents.metrics[block.task][block.metric] if is_only_metric else "score"
    unit, points = (", %", ", points") if contents.index.is_share(block.metric) else ("", "")
    named = kind.title.replace("{unit}", unit).replace("{points}", points)
    return named.replace("{metric}", title)


def _filled(contents: Contents, placed: list[Placed]) -> list[Placed]:
    """Without default columns that have nothing to show anywhere."""
    if contents.spec.columns is not None:
        return placed
    shown = {
        place.column.name
        for place in placed
        if any(_cell(contents, row, place).text != NOTHING for row in contents.rows)
    }
    return [place for place in placed if place.column.name in shown]


def _cells(contents: Contents, row: Row, placed: list[Placed]) -> tuple[Cell, ...]:
    return tuple(_cell(contents, row, place) for place in placed)


def _cell(contents: Contents, row: Row, place: Placed) -> Cell:
    return show(contents, row, place.kind, place.block)


def show(contents: Contents, row: Row, kind: Kind, block: Block) -> Cell:
    """The cell of a row in a column of a block."""
    find: Callable[[Row, Block], Entry] = contents.entry
    if kind.scope == "base":
        find = contents.on_base
    return kind.cell(find(row, block), contents.spec.decimals)


def _is_there(contents: Contents, row: Row) -> bool:
    """A row of the study, or an untouched base that was scored."""
    entries = [contents.entry(row, block) for block in contents.blocks]
    return any(entry.runs for entry in entries) or not entries[0].is_base


def _records(contents: Contents, kinds: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """One flat record a row and block, with numbers at full precision; all have the same keys."""
    pairs = [(r, b) for r in contents.rows if _is_there(contents, r) for b in contents.blocks]
    shown = [_values(contents, row, block, kinds) for row, block in pairs]
    parts = {name: dict.fromkeys(p for one in shown for p in one[name]) for name in kinds}
    labels = dict.fromkeys(label for row in contents.rows for label in row.variables)
    records = []
    for (row, block), values in zip(pairs, shown, strict=True):
        record: dict[str, Any] = {"row": row.name, "title": row.title, "group": row.group}
        record |= {"base": without_folders(block.base), "task": without_folders(block.task)}
        record["metric"] = block.metric
        record = {label: row.variables.get(label) for label in labels} | record
        for name in kinds:
            if name not in record:
                record |= {f"{name}_{p}" if p else name: values[name].get(p) for p in parts[name]}
        records.append(record | {"note": "; ".join(contents.entry(row, block).reasons)})
    return records


def _values(
    contents: Contents, row: Row, block: Block, kinds: Mapping[str, Kind]
) -> dict[str, Mapping[str, Any]]:
    """Column -> part -> value."""
    return {name: show(contents, row, kind, block).values for name, kind in kinds.items()}
