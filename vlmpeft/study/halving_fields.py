"""What successive halving chooses among: the rows of a study with each setting that its search tries, by task and base."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmpeft.study.cells import Cell
from vlmpeft.study.halving import Result, Rung, rungs
from vlmpeft.study.planned_run import Candidate, PlannedRun
from vlmpeft.study.records_on_disk import RecordsOnDisk
from vlmpeft.study.resolving import ResolvedCell
from vlmpeft.study.spec import Search

ON = "val"


@dataclass(frozen=True)
class Arm:
    """A row with one try of its settings."""

    cell: Cell
    candidate: Candidate

    @property
    def name(self) -> dict[str, Any]:
        return {"row": self.cell.row, "settings": dict(self.candidate.settings)}


@dataclass(frozen=True)
class Field:
    """The arms of one task and base.

    Args:
        base: its name.
        task: its name.
        arms: in the order of the study's rows.
        seeds: of every arm.
        largest: the cell that trains most, whose steps are timed.
    """

    base: str
    task: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    largest: ResolvedCell

    def runs(self, arm: int, steps: int) -> list[PlannedRun]:
        """The runs of an arm in a rung, one a seed."""
        cell, candidate = self.arms[arm].cell, self.arms[arm].candidate
        label = "+".join(filter(None, (f"halving={steps}", candidate.label)))
        named = Candidate(label, candidate.settings, candidate.args)
        return [PlannedRun(cell, seed, named, ON, steps) for seed in self.seeds]

    def rungs(self, first_steps: int, records: RecordsOnDisk) -> list[Rung]:
        """The rungs that have begun, from what is on disk."""

        def result_of(arm: int, steps: int) -> Result | None:
            return _result(self.runs(arm, steps), records)

        return rungs(len(self.arms), first_steps, result_of)


def fields_of(cells: Sequence[ResolvedCell], search: Search | None) -> list[Field]:
    """A field for every task and base.

    Args:
        cells: that can be run.
        search: what is tried of each row; None takes its settings as they are.
    """
    found: dict[tuple[str, str], list[ResolvedCell]] = {}
    for one in cells:
        found.setdefault((one.cell.base, one.cell.task), []).append(one)
    return [_field(base, task, mine, search) for (base, task), mine in found.items()]


def _field(base: str, task: str, cells: list[ResolvedCell], search: Search | None) -> Field:
    arms = tuple(
        Arm(one.cell, candidate)
        for one in cells
        for candidate in (one.candidates or (Candidate(),))
    )
    seeds = search.seeds if search else cells[0].cell.seeds[:1]
    largest = max(cells, key=lambda one: one.size.trainable if one.size else 0)
    return Field(base, task, arms, seeds, largest)


def _result(runs: list[PlannedRun], records: RecordsOnDisk) -> Result | None:
    if not all(records.is_over(run) for run in runs):
        raise KeyError(runs[0].name)
    scored = [scores for run in runs if (scores := records.scores(run, ON))]
    if not scored:
        return None
    return Result(*(statistics.mean(values) for values in zip(*scored, strict=True)))


def begun_runs(
    fields: Sequence[Field], first_steps: int, records: RecordsOnDisk
) -> Iterator[PlannedRun]:
    """Every run of every rung that has begun."""
    for one in fields:
        for rung in one.rungs(first_steps, records):
            for arm in rung.arms:
                yield from one.runs(arm, rung.steps)


def missing_runs(
    fields: Sequence[Field], first_steps: int, records: RecordsOnDisk
) -> list[PlannedRun]:
    """What is to be made next: the rungs that are not over, the lowest of all fields first; nothing if every field is down to one."""
    last = [(one, one.rungs(first_steps, records)[-1]) for one in fields]
    open_ = [(one, rung) for one, rung in last if not rung.is_over]
    lowest = min((rung.number for _, rung in open_), default=0)
    return [
        run
        for one, rung in open_
        if rung.number == lowest
        for arm in rung.arms
        for run in one.runs(arm, rung.steps)
    ]


def head(fields: Sequence[Field], seconds: float) -> Mapping[str, Any]:
    """What makes two calls parts of one halving: budget, arms and seeds."""
    return {
        "budget_seconds": seconds,
        "fields": [
            {
                "base": one.base,
                "task": one.task,
                "seeds": list(one.seeds),
                "arms": [arm.name for arm in one.arms],
            }
            for one in fields
        ],
    }
