"""A table as a grid: a row for each value of one variable of a study, a column for each value of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.study.report import numerals
from vlmpeft.study.report.columns import Kind
from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.entries import Block
from vlmpeft.study.report.info import Row
from vlmpeft.study.report.spec import Pivot
from vlmpeft.study.report.table import Cell, Column, Table, TableRow

_NO_VALUE = "whole row"


def pivoted(table: Table, contents: Contents, kinds: Mapping[str, Kind]) -> Table:
    """The grid that a spec asks for, with the caption, notes and CSV lines of the plain table.

    Rows of the study that have no value for the columns' variable, such as zero-shot and full fine-tuning, stand below in a column of
    their own.

    Raises:
        UserError: a variable is not there, or two rows have the same place.
    """
    pivot = contents.spec.pivot
    assert pivot is not None
    rows = [row for row in contents.rows if row.name in {r.name for r in table.rows}]
    for label in (pivot.rows, pivot.columns):
        _check_variable(label, rows)
    places = _places(pivot, rows)
    columns = list(dict.fromkeys(column for _, column in places))
    heads = [Column("row", pivot.rows, (), is_text=True)] + [
        Column(pivot.cell, name, _above(contents, block)) for block in contents.blocks for name in columns
    ]  # fmt: skip
    lines = dict.fromkeys(line for line, _ in places)
    body = [
        TableRow(line, None, (Cell(line), *_cells(contents, kinds[pivot.cell], places, line, columns)))
        for line in lines
    ]  # fmt: skip
    notes = (*_ranges(contents, places), *table.notes)
    return replace(table, columns=tuple(heads), rows=tuple(body), notes=notes)


def _ranges(contents: Contents, places: Mapping[tuple[str, str], Row]) -> Iterator[str]:
    """What a grid has no columns for: seeds and sizes of its cells."""
    inside = [row for (_, column), row in places.items() if column != _NO_VALUE]
    entries = [contents.entry(row, block) for block in contents.blocks for row in inside]
    seeds = [len(entry.runs) for entry in entries if entry.runs]
    sizes = [
        run.record["trainable"] for e in entries for run in e.runs if "trainable" in run.record
    ]
    if seeds:
        yield f"Seeds of a cell: {numerals.span(seeds, str(seeds[0]))}."
    if sizes:
        yield f"Trainable parameters of a cell: {numerals.span(sizes, numerals.integer(sizes[0]))}."


def _cells(
    contents: Contents,
    kind: Kind,
    places: Mapping[tuple[str, str], Row],
    line: str,
    columns: list[str],
) -> list[Cell]:
    from vlmpeft.study.report.layout import show

    return [
        show(contents, places[line, column], kind, block) if (line, column) in places else Cell("")
        for block in contents.blocks
        for column in columns
    ]


def _places(pivot: Pivot, rows: list[Row]) -> dict[tuple[str, str], Row]:
    """(line, column) -> row; first what has both values, then what has not."""
    found: dict[tuple[str, str], Row] = {}
    for is_inside in (True, False):
        for row in rows:
            values = row.variables
            if (pivot.rows in values and pivot.columns in values) != is_inside:
                continue
            column = str(values[pivot.columns]) if is_inside else _NO_VALUE
            line = str(values[pivot.rows]) if is_inside else row.title
            if other := found.get((line, column)):
                raise UserError(
                    f"pivot: {other.name} and {row.name} are both {pivot.rows}={line}, {pivot.columns}={column}; "
                    "choose between them with rows:"
                )
            found[line, column] = row
    return found


def _check_variable(label: str, rows: list[Row]) -> None:
    known = dict.fromkeys(name for row in rows for name in row.variables)
    if label not in known:
        raise UserError(f"pivot: the study has no variable {label!r}.{did_you_mean(label, known)}")


def _above(contents: Contents, block: Block) -> tuple[str, ...]:
    titles = (contents.bases, contents.tasks, contents.metrics[block.task])
    names = (block.base, block.task, block.metric)
    return tuple(
        of[name] for of, name in zip(titles, names, strict=True) if len(of) > 1 or of is titles[2]
    )
