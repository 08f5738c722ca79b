"""`merge`: several adapters -> one adapter folder, or one checkpoint."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vlmpeft.cli.config_files import names_of
from vlmpeft.cli.merge_tables import show, show_whole
from vlmpeft.export.merge_into_checkpoint import WholeMerge
from vlmpeft.merging.base_mismatch import Mismatch, find_mismatches
from vlmpeft.merging.conflict_plot import draw_conflicts
from vlmpeft.merging.conflicts import Conflict
from vlmpeft.merging.merger import Merger, read_adapters
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.result import Result
from vlmpeft.merging.tuning import Judge, grid_of, plain, search
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.records import write_json
from vlmpeft.runtime.visible import terminal_console, visible
from vlmpeft.strategies.plan import allow_strategies


def merge_adapters(recipe: Recipe, settings: SimpleNamespace) -> None:
    """Merge, and say what came out.

    Args:
        recipe: the rule and its knobs.
        settings: the options of the verb (see `verbs.merge`).

    Raises:
        UserError: adapters that do not combine, knobs without effect.
    """
    out = Path(settings.out)
    with contextlib.redirect_stdout(sys.stderr if settings.json else sys.stdout):
        quiet_libraries()
        allow_strategies(names_of(settings.allow_strategy))
        merger = read_adapters(settings.adapters, settings.base, settings.allow_base_mismatch)
        tried = None
        if settings.tune:
            recipe, tried = _tuned(merger, recipe, settings)
        mismatches = [one.to_dict() for one in _shown_mismatches(merger, settings)]
        history = {"search": tried, "mismatches": mismatches}
        write = _write_adapter if settings.to == "adapter" else _write_whole
        summary, found = write(merger, recipe, settings, history)
    if settings.explain:
        draw_conflicts(found, out / "conflicts.png")
    if settings.json:
        print(json.dumps(summary | {"conflicts": [asdict(c) for c in found]}))  # noqa: T201
    elif settings.to == "adapter":
        show(terminal_console(), summary, found, settings.explain)
    else:
        show_whole(terminal_console(), summary, out, found)


def _write_adapter(
    merger: Merger, recipe: Recipe, settings: Any, history: dict[str, Any]
) -> tuple[dict[str, Any], list[Conflict]]:
    """`--to adapter`: (what is said of it, conflicts)."""
    out = Path(settings.out)
    result = merger.merge(recipe)
    found = merger.conflicts()
    merger.save(result, recipe, out, **history)
    write_json(out / "conflicts.json", {"conflicts": [asdict(conflict) for conflict in found]})
    mismatches = {"mismatches": history["mismatches"]}
    return _summary(merger, recipe, result, out) | mismatches, found


def _write_whole(
    merger: Merger, recipe: Recipe, settings: Any, history: dict[str, Any]
) -> tuple[dict[str, Any], list[Conflict]]:
    """`--to merged`: (its report, conflicts if they are to be explained, which takes as long as a merge)."""
    gate, data, limit = settings.gate or "answers", tuple(settings.data), settings.limit or 8
    report = WholeMerge(merger, recipe, gate, data, limit).write(Path(settings.out), history)
    return report, merger.conflicts() if settings.explain else []


def _tuned(merger: Merger, recipe: Recipe, settings: Any) -> tuple[Recipe, list[dict[str, Any]]]:
    """The recipe with the knobs of --tune chosen on --data, and the search."""
    if not settings.data:
        raise UserError("merge: --tune needs validation data: --data val.json [other.json ...]")
    grid = grid_of(settings.tune.split(","), recipe)
    judge = Judge(merger, {name: name for name in settings.data}, limit=settings.limit)
    chosen, tried = search(merger, recipe, grid, judge.scores)
    best = max(tried, key=lambda one: one.mean)
    knobs = ", ".join(f"{knob} {value:g}" for knob, value in best.knobs.items())
    said = f"tuned on {len(tried)} points: {knobs} (mean {judge.metric.name} {best.mean:.4f})"
    print(visible(said))  # noqa: T201
    return chosen, plain(tried)


def _shown_mismatches(merger: Merger, settings: Any) -> list[Mismatch]:
    """Adapters of other bases with their scores, printed."""
    found = find_mismatches(merger, settings.data, settings.limit)
    for mismatch in found:
        print(visible(str(mismatch)))  # noqa: T201
    return found


def _summary(merger: Merger, recipe: Recipe, result: Result, out: Path) -> dict[str, Any]:
    component_of = merger.components.component_of
    names = {"lora": result.products, "dense": result.tensors, "own": result.own}
    counts: dict[str, dict[str, int]] = {}
    for kind, found in names.items():
        for name in found:
            row = counts.setdefault(component_of(name), dict.fromkeys(names, 0))
            row[kind] += 1
    return {
        "method": recipe.method,
        "adapters": [operand.folder for operand in merger.operands],
        "out": str(out),
        "rank": result.rank,
        "energy": result.energy,
        "dense_for_want_of_energy": len(result.refused),
        "energy_as_lora": result.refused_energy,
        "components": counts,
        "loadable_in_peft": (out / "adapter_config.json").is_file(),
    }
