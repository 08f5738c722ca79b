"""`merge`: several adapters -> one adapter folder, or one checkpoint."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from vlmpeft.cli.config_files import names_of
from vlmpeft.cli.explain import explain
from vlmpeft.cli.merge_tables import show, show_whole
from vlmpeft.export.merge_into_checkpoint import GateName, WholeMerge
from vlmpeft.merging.base_mismatch import Mismatch, find_mismatches
from vlmpeft.merging.conflict_plot import draw_conflicts
from vlmpeft.merging.conflicts import Conflict
from vlmpeft.merging.merger import Merger, read_adapters
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.result import Result
from vlmpeft.merging.rule_table import RULES
from vlmpeft.merging.tuning import GRID, Judge, grid_of, plain, search
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.records import write_json
from vlmpeft.runtime.visible import terminal_console, visible
from vlmpeft.strategies.plan import allow_strategies

LISTS = ("--adapters", "--weights", "--data")


class _Parser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        names = [name for action in self._actions for name in action.option_strings]
        raise UserError(f"merge: {explain(str(message), names)}") from ex


def make_parser() -> ArgumentParser:
    """Options of the verb; a YAML file of the same keys comes by --config."""
    rules = "; ".join(f"{name}: {rule.paper}" for name, rule in RULES.items())
    parser = _Parser(
        prog="vlmpeft merge", description=f"Merge adapters of one base into one. Rules: {rules}."
    )
    parser.add_argument("--config", action="config", help="YAML with these keys.")
    parser.add_argument("--adapters", type=tuple[str, ...], default=(), help="Adapter folders.")
    parser.add_class_arguments(Recipe)
    parser.add_argument(
        "--tune",
        type=str | None,
        default=None,
        help=f"Knobs to choose on --data, of {', '.join(GRID)}; e.g. lam,density.",
    )
    parser.add_argument(
        "--data",
        type=tuple[str, ...],
        default=(),
        help="Files of conversations that merges are scored on by exact match (the mean decides), and adapters of another base.",
    )
    parser.add_argument(
        "--limit", type=int | None, default=None, help="Items of each that are scored."
    )
    parser.add_argument(
        "--to",
        type=Literal["adapter", "merged"],
        default="adapter",
        help="An adapter, or a checkpoint that needs none: a copy of the base's files with dW added where the weights lie, in the "
        "memory of one tensor and its T dW.",
    )
    parser.add_argument(
        "--gate",
        type=GateName | None,
        default=None,
        help="Of --to merged. answers (default): what was written, as transformers loads it, answers as the base with the merge "
        "attached, which takes a model's memory; weights: every tensor is read back and every other byte compared with the base's.",
    )
    parser.add_argument("--out", type=str | None, default=None, help="Folder that is written.")
    parser.add_argument("--base", type=str | None, default=None, help="Where the base is now.")
    parser.add_argument(
        "--allow_strategy",
        type=str | None,
        default=None,
        help="Strategies of your own that an adapter may name: mine.A,mine.B.",
    )
    parser.add_argument(
        "--explain",
        type=bool,
        default=False,
        nargs="?",
        const=True,
        help="Also a picture of the conflicts.",
    )
    parser.add_argument(
        "--json", type=bool, default=False, nargs="?", const=True, help="Print JSON alone."
    )
    parser.add_argument(
        "--allow_base_mismatch",
        type=bool,
        default=False,
        nargs="?",
        const=True,
        help="Merge adapters of different bases, and show how each scores on its own and on the merge's.",
    )
    return parser


def joined_lists(args: list[str], options: tuple[str, ...] = LISTS) -> list[str]:
    """`--weights 1 1 0.5` as `--weights [1,1,0.5]`, which is how jsonargparse reads lists.

    >>> joined_lists(["--weights", "1", "-1", "--out", "x"])
    ['--weights', '["1", "-1"]', '--out', 'x']
    """
    result, i = [], 0
    while i < len(args):
        result.append(args[i])
        i += 1
        if result[-1] not in options:
            continue
        values = []
        while i < len(args) and not args[i].startswith("--"):
            values.append(args[i])
            i += 1
        plain = len(values) == 1 and values[0].startswith("[")
        result.append(values[0] if plain else json.dumps(values))
    return result


def merge_adapters(args: list[str]) -> None:
    """The verb.

    Raises:
        UserError: adapters that do not combine, knobs without effect, a target folder that exists.
    """
    parser = make_parser()
    settings = parser.parse_args(joined_lists(args))
    recipe = _recipe(settings)
    out = _target(settings.out)
    if settings.gate and settings.to == "adapter":
        raise UserError(
            f"merge: --gate {settings.gate} has no effect on --to adapter, which changes no weights of a base; leave it out"
        )
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


def _recipe(settings: Any) -> Recipe:
    plain = settings.as_dict()
    try:
        return Recipe(**{f.name: plain[f.name] for f in fields(Recipe)})
    except UserError as error:
        raise UserError(f"merge: {error}") from error


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


def _target(out: str | None) -> Path:
    if not out:
        raise UserError(
            "merge: --out DIR is missing: the folder that the merged adapter is written to"
        )
    if Path(out).exists():
        raise UserError(
            f"merge: --out {out} exists already; nothing was written. Give another folder"
        )
    return Path(out)


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
