"""What `study.json` says of a resolved study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from vlmpeft.study.candidates import num_candidates
from vlmpeft.study.report.info import Row, StudyInfo
from vlmpeft.study.resolving import ResolvedStudy
from vlmpeft.study.rows import StudyRow

FULL = "full"  # a row of this name is full fine-tuning, unless the file says another


def study_info(study: ResolvedStudy, seeds: Iterable[int] = ()) -> StudyInfo:
    """What a study is made of, for its tables.

    Args:
        study: resolved.
        seeds: beside those of the file.
    """
    spec = study.spec
    names = [row.name for row in study.rows]
    every_seed = {*spec.seeds, *seeds, *(seed for row in study.rows for seed in row.seeds)}
    return StudyInfo(
        name=spec.name,
        title=spec.title,
        rows=tuple(_row(study, row) for row in study.rows),
        tasks=tuple(spec.tasks),
        bases=tuple(spec.bases),
        seeds=tuple(sorted(every_seed)),
        reference=spec.reference,
        full=spec.full or (FULL if FULL in names else None),
        margin=spec.margin,
        cluster=spec.cluster,
        search=_search(study),
        recommend=spec.recommend,
        match_parameters=_match(study),
    )


def _row(study: ResolvedStudy, row: StudyRow) -> Row:
    return Row(row.name, row.title, row.group, row.variables, _illegal(study, row))


def _illegal(study: ResolvedStudy, row: StudyRow) -> dict[str, str]:
    """Task or base that the row cannot be run on -> why; "" is all of them."""
    cells = [one.cell for one in study.cells if one.cell.row == row.name]
    reasons = {(cell.base, cell.task): cell.illegal for cell in cells if cell.illegal}
    if len(reasons) == len(cells):
        return {"": next(iter(reasons.values()))} if reasons else {}
    found: dict[str, str] = {}
    for name in (*study.spec.bases, *study.spec.tasks):
        about = [cell for cell in cells if name in (cell.base, cell.task)]
        if about and all(cell.illegal for cell in about):
            found[name] = str(about[0].illegal)
    rest = {key: why for key, why in reasons.items() if not {*key} & {*found}}
    return found | {f"{base}/{task}": why for (base, task), why in rest.items()}


def _search(study: ResolvedStudy) -> Mapping[str, Any] | None:
    search = study.spec.search
    if search is None:
        return None
    return {
        "over": {key: list(values) for key, values in search.over.items()},
        "seeds": list(search.seeds),
        "steps": search.steps,
        "on": search.on,
        "candidates": num_candidates(search),
    }


def _match(study: ResolvedStudy) -> Mapping[str, Any] | None:
    match = study.spec.match
    if match is None:
        return None
    chosen: dict[str, dict[str, Any]] = {base: {} for base in study.spec.bases}
    for one in study.cells:
        if one.matched:
            told = {"knobs": one.matched.knobs, "trainable": one.matched.trainable}
            chosen[one.cell.base][one.cell.row] = told
    return {**asdict(match), "chosen": chosen}
