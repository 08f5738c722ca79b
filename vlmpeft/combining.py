"""`merge`: several adapters -> one adapter folder."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from vlmpeft.config import explain, quiet_libraries
from vlmpeft.errors import UserError
from vlmpeft.heatmap import draw_conflicts
from vlmpeft.merging.combine import Merger, read_adapters
from vlmpeft.merging.conflicts import Conflict
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.registry import RULES
from vlmpeft.merging.result import Result
from vlmpeft.records import write_json
from vlmpeft.tuning import GRID, Judge, grid_of, plain, search

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
        help="Files of conversations that merges are scored on by exact match; the mean decides.",
    )
    parser.add_argument(
        "--limit", type=int | None, default=None, help="Items of each that are scored."
    )
    parser.add_argument("--out", type=str | None, default=None, help="Folder that is written.")
    parser.add_argument("--base", type=str | None, default=None, help="Where the base is now.")
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
        help="Merge adapters of different bases.",
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
    with contextlib.redirect_stdout(sys.stderr if settings.json else sys.stdout):
        quiet_libraries()
        merger = read_adapters(settings.adapters, settings.base, settings.allow_base_mismatch)
        tried = None
        if settings.tune:
            recipe, tried = _tuned(merger, recipe, settings)
        result = merger.merge(recipe)
        found = merger.conflicts()
        merger.save(result, recipe, out, tried)
    write_json(out / "conflicts.json", {"conflicts": [asdict(conflict) for conflict in found]})
    if settings.explain:
        draw_conflicts(found, out / "conflicts.png")
    summary = _summary(merger, recipe, result, out)
    if settings.json:
        print(json.dumps(summary | {"conflicts": [asdict(c) for c in found]}))  # noqa: T201
    else:
        _show(Console(highlight=False), summary, found, settings.explain)


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
    print(f"tuned on {len(tried)} points: {knobs} (mean {judge.metric.name} {best.mean:.4f})")  # noqa: T201
    return chosen, plain(tried)


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


def _show(
    console: Console, summary: dict[str, Any], found: list[Conflict], explained: bool
) -> None:
    table = Table(title=f"{summary['method']} of {len(summary['adapters'])} adapters")
    for column in ("component", "LoRA weights", "dense parameters", "own parameters"):
        table.add_column(column, justify="left" if column == "component" else "right")
    for name, row in summary["components"].items():
        table.add_row(name, *(str(row[kind]) for kind in ("lora", "dense", "own")))
    console.print(table)
    if summary["rank"]:
        console.print(
            f"LoRA of rank up to {summary['rank']}, which keeps {100 * summary['energy']:.2f} % of the squared norm of dW"
        )
    if refused := summary["dense_for_want_of_energy"]:
        console.print(
            f"{refused} weights are dense: as LoRA of the adapters' rank they would keep "
            f"{100 * summary['energy_as_lora']:.1f} % of their squared norm; --rank R writes LoRA all the same"
        )
    if found:
        console.print(_conflict_table(found))
    reader = "plain PEFT loads it" if summary["loadable_in_peft"] else "vlmpeft alone loads it"
    console.print(f"adapter: {summary['out']} ({reader})", soft_wrap=True)
    if explained:
        console.print(f"picture: {summary['out']}/conflicts.png", soft_wrap=True)


def _conflict_table(found: list[Conflict]) -> Table:
    table = Table(title="conflicts before the merge, by component and layer")
    for column in ("component", "layer", "cosine", "signs that differ"):
        table.add_column(column, justify="left" if column == "component" else "right")
    for conflict in found:
        layer = "-" if conflict.layer is None else str(conflict.layer)
        share = f"{100 * conflict.sign_disagreement:.1f} %"
        table.add_row(conflict.component, layer, f"{conflict.cosine:+.3f}", share)
    return table
