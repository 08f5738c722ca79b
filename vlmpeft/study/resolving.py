"""Every cell of a study, resolved before the first run: its plan, its size, or why it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.workbench.reference import PREFIX, read_reference
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.plan import Plan
from vlmpeft.study.candidates import candidates_of
from vlmpeft.study.cells import Cell, IllegalCell, cells_of
from vlmpeft.study.matching import Matched, match_plan
from vlmpeft.study.meta_base import MetaBase, Size
from vlmpeft.study.plan_settings import difference
from vlmpeft.study.planned_run import Candidate
from vlmpeft.study.rows import StudyRow, expand_rows
from vlmpeft.study.settings import as_arguments
from vlmpeft.study.spec import StudySpec


@dataclass(frozen=True)
class Resolved:
    """The arguments of a fit, parsed.

    Args:
        base: the base and its bits.
        plan: what is trained.
        config: everything else of the run, as plain data.
    """

    base: BaseSpec
    plan: Plan
    config: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        """Where it would run."""
        wanted = self.config["trainer"]["accelerator"]
        gpu = torch.cuda.is_available() and wanted in ("auto", "gpu", "cuda")
        return torch.device("cuda" if gpu else "cpu")


Resolve = Callable[[Sequence[str]], Resolved]


@dataclass(frozen=True)
class ResolvedCell:
    """A cell, and what it comes to.

    Args:
        cell: with the settings that matching chose among its arguments, or with the reason why it is illegal.
        resolved: its arguments, parsed; None of an illegal one.
        size: what it trains; None of an illegal one.
        matched: what was chosen for its size to be the study's.
        candidates: of the search for its settings.
    """

    cell: Cell
    resolved: Resolved | None = None
    size: Size | None = None
    matched: Matched | None = None
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class ResolvedStudy:
    """A study of which every cell is resolved.

    Args:
        spec: its file.
        rows: in the order of its tables.
        cells: base by base, task by task, in the order of the rows.
    """

    spec: StudySpec
    rows: tuple[StudyRow, ...]
    cells: tuple[ResolvedCell, ...]


def resolve_study(spec: StudySpec, resolve: Resolve) -> ResolvedStudy:
    """Parse and try every cell of a study, without weights and without data.

    Args:
        spec: the study.
        resolve: arguments of a fit -> what they mean; raises a UserError for a mistake in them, an IllegalCell for a plan
            whose values do not go together.

    Raises:
        UserError: a mistake in the file; an illegal cell, unless the study skips those; nothing that is legal.
    """
    _check_tasks(spec)
    rows = expand_rows(spec)
    by_name, bases = {row.name: row for row in rows}, _Bases()
    cells = tuple(
        _resolve(spec, by_name[cell.row], cell, resolve, bases) for cell in cells_of(spec, rows)
    )
    if all(one.cell.illegal for one in cells):
        first = cells[0].cell
        raise UserError(f"no cell of study {spec.name} is legal; {first.place}: {first.illegal}")
    return ResolvedStudy(spec, rows, cells)


class _Bases:
    """The bases of a study on the meta device, each made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[BaseSpec, torch.device], MetaBase] = {}

    def of(self, resolved: Resolved) -> MetaBase:
        key = resolved.base, resolved.device
        if key not in self._made:
            self._made[key] = MetaBase(*key)
        return self._made[key]


def _resolve(
    spec: StudySpec, row: StudyRow, cell: Cell, resolve: Resolve, bases: _Bases
) -> ResolvedCell:
    try:
        return _legal(spec, row, cell, resolve, bases)
    except IllegalCell as error:
        if spec.skip_illegal:
            return ResolvedCell(replace(cell, illegal=str(error)))
        raise UserError(f"{cell.place}: {error} (skip_illegal: true makes it a dash)") from error
    except UserError as error:
        raise UserError(f"{cell.place}: {error}") from error


def _legal(
    spec: StudySpec, row: StudyRow, cell: Cell, resolve: Resolve, bases: _Bases
) -> ResolvedCell:
    """A cell with its size.

    Raises:
        IllegalCell: it cannot be.
    """
    resolved = resolve(cell.args)
    base, engine, matched = bases.of(resolved), resolved.config["model"].get("serve_with"), None
    if spec.match and row.match:
        matched = match_plan(resolved.plan, spec.match.on(base.parameters), base.count)
        chosen = as_arguments(difference(resolved.plan, matched.plan))
        cell = replace(cell, args=(*cell.args, *chosen))
        resolved = replace(resolved, plan=matched.plan)
    size = base.size(resolved.plan, engine)
    candidates = candidates_of(spec.search, resolved.plan) if spec.search and cell.search else ()
    if any("." in key for one in candidates for key in one.settings):  # not of learning rates alone
        for one in candidates:
            _try(one, cell, resolve, bases)
    return ResolvedCell(cell, resolved, size, matched, candidates)


def _try(candidate: Candidate, cell: Cell, resolve: Resolve, bases: _Bases) -> None:
    try:
        found = resolve((*cell.args, *candidate.args))
        bases.of(found).size(found.plan)
    except UserError as error:
        raise type(error)(f"search {candidate.label}: {error}") from error


def _check_tasks(spec: StudySpec) -> None:
    """Raise a UserError for a task of the workbench that there is not."""
    for task, settings in spec.tasks.items():
        for value in settings.values():
            if isinstance(value, str) and value.startswith(PREFIX):
                try:
                    read_reference(value)
                except UserError as error:
                    raise UserError(f"task {task}: {error}") from error
