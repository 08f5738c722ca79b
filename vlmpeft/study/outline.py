"""What a study would do, before it does anything: runs, sizes, memory, what is finished."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import read_record
from vlmpeft.study.memory import forecast_peaks
from vlmpeft.study.planned_run import reported_runs, search_runs
from vlmpeft.study.resolving import ResolvedCell, ResolvedStudy
from vlmpeft.study.spec import Search

ProbeSeconds = Callable[[ResolvedCell], float | None]  # of all runs of a cell


def not_probed(_: ResolvedCell) -> None:
    """Hours are not known: no step was made."""


def outline(
    study: ResolvedStudy,
    cells: Sequence[ResolvedCell],
    folder: Path,
    probe_seconds: ProbeSeconds = not_probed,
) -> dict[str, Any]:
    """A study as plain data.

    Args:
        study: resolved.
        cells: those that are meant.
        folder: of its records, in which finished runs are counted.
        probe_seconds: how long a cell's runs will take, together; None is not known.
    """
    peaks = forecast_peaks(cells)
    listed = []
    for one in cells:
        entry = _entry(one, study.spec.search, folder)
        peak = peaks.get((one.cell.base, one.cell.task, one.cell.row))
        entry["peak_bytes"] = peak.bytes if peak else None
        entry["peak_of"] = peak.of if peak else None
        entry["seconds"] = None if one.cell.illegal else probe_seconds(one)
        listed.append(entry)
    keys = ("search", "reported", "done")
    total = {key: sum(entry["runs"][key] for entry in listed) for key in keys}
    match = study.spec.match
    return {
        "study": study.spec.name,
        "title": study.spec.title,
        "folder": str(folder),
        "runs": total,
        "match_parameters": asdict(match) if match else None,
        "cells": listed,
    }


def _entry(one: ResolvedCell, search: Search | None, folder: Path) -> dict[str, Any]:
    cell, size = one.cell, one.size
    tries, runs = [], []
    if not cell.illegal:
        tries, runs = list(search_runs(cell, one.candidates, search)), list(reported_runs(cell))
    return {
        "row": cell.row,
        "task": cell.task,
        "base": cell.base,
        "seeds": list(cell.seeds),
        "illegal": cell.illegal,
        "trainable": size.trainable if size else None,
        "percent": size.percent if size else None,
        "components": size.components if size else None,
        "knobs": one.matched.knobs if one.matched else None,
        "candidates": [{"label": c.label, "args": list(c.args)} for c in one.candidates],
        "runs": {
            "search": len(tries),
            "reported": len(runs),
            "done": sum(_is_done(folder / run.name) for run in (*tries, *runs)),
        },
        "command": shlex.join(["python", "-m", "vlmpeft", "fit", *cell.args]),
    }


def _is_done(folder: Path) -> bool:
    """Whether a run has left its record; a damaged one is made again."""
    try:
        record = read_record(folder)
    except UserError:
        return False
    return record is not None and record["status"] == "done"
