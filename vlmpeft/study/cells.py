"""The cells of a study: a row on a task and a base, each of them a command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlmpeft.runtime.errors import UserError
from vlmpeft.study.rows import StudyRow
from vlmpeft.study.settings import as_arguments
from vlmpeft.study.spec import StudySpec


class IllegalCell(UserError):
    """A plan that this base, or this width of its weights, does not allow."""


@dataclass(frozen=True)
class Cell:
    """A row on one task and one base; with a seed it is a run.

    Args:
        row: its name.
        task: its name.
        base: its name.
        args: of `python -m vlmpeft fit`, without seed and run folder.
        seeds: it is run with.
        search: whether its settings are searched for.
        illegal: why it cannot be run.
    """

    row: str
    task: str
    base: str
    args: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    search: bool = True
    illegal: str | None = None

    @property
    def place(self) -> str:
        """Where an error is."""
        return f"row {self.row} on task {self.task}, base {self.base}"


def cells_of(spec: StudySpec, rows: tuple[StudyRow, ...]) -> Iterator[Cell]:
    """Every cell of a study, base by base, task by task, in the order of its rows."""
    for base in spec.bases:
        for task in spec.tasks:
            for row in rows:
                if task in row.tasks:
                    search = row.search and spec.search is not None
                    args = arguments(spec, row, task, base)
                    yield Cell(row.name, task, base, args, row.seeds, search)


def arguments(spec: StudySpec, row: StudyRow, task: str, base: str) -> tuple[str, ...]:
    """Arguments of a fit: configs, then the settings of the study, the base, the task and the row; the last one wins."""
    own = (row.settings, row.tasks[task])
    layers = (row.common, spec.bases[base], spec.tasks[task], *own)
    configs = [f"--config={config}" for config in spec.configs]
    said = (argument for layer in layers for argument in as_arguments(layer))
    return (*configs, *said, *spec.overrides)
