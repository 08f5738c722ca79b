"""`compare`: paired statistics of two runs, adapters or rows of studies, and a gate on them."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vlmpeft.data.json_values import field_hits
from vlmpeft.runtime.errors import GateFailed
from vlmpeft.runtime.visible import terminal_console, visible, visible_json
from vlmpeft.study.report.compare import Differences, compare_sides
from vlmpeft.study.report.gate import Condition, read_conditions
from vlmpeft.study.report.sides import Side, read_side
from vlmpeft.study.report.statistics import Comparison
from vlmpeft.study.report.verdicts import verdict

_JSON_FIELDS = "json_fields"


def compare_two(settings: SimpleNamespace) -> None:
    """Compare, and say what came out.

    Args:
        settings: the options of the verb (see `verbs.compare`).

    Raises:
        UserError: sides that cannot be compared, a condition of another form.
        GateFailed: a condition of --fail_if holds.
    """
    conditions = read_conditions(settings.fail_if)
    with contextlib.redirect_stdout(sys.stderr if settings.json else sys.stdout):
        a, b = _sides(settings)
    found = compare_sides(
        a,
        b,
        metrics=settings.metric,
        group_by=settings.group_by,
        fields=json_field_scores,
        cluster=settings.cluster,
        margin=settings.margin,
        most_worse=settings.worst,
    )
    named = found.named()
    failed = [condition for condition in conditions if condition.holds(named)]
    if settings.html:
        from vlmpeft.cli.compare_page import write_page

        write_page(Path(settings.html), found, settings.image_dir)
    if settings.json:
        print(visible_json(json.dumps(as_plain(found, conditions, failed), ensure_ascii=False)))  # noqa: T201
    else:
        show(terminal_console(), found)
        if settings.html:
            print(visible(f"page: {settings.html}"))  # noqa: T201
    if failed:
        told = "; ".join(f"{c}: it is {c.value(named):.4g}" for c in failed)
        raise GateFailed(f"compare: {told}")


def _sides(settings: SimpleNamespace) -> tuple[Side, Side]:
    if not settings.data:
        return read_side(settings.a), read_side(settings.b)
    from vlmpeft.cli.compare_scoring import score_sides

    return score_sides(settings)


def json_field_scores(item: Mapping[str, Any]) -> dict[str, float]:
    """Each field of an item's JSON answer as a score: 1 if it is right, 0 if not; none without the metric json_fields."""
    if _JSON_FIELDS not in item["scores"]:
        return {}
    is_whole = item["finish_reason"] == "stop"
    answer = item["generated"] if is_whole else ""
    hits = field_hits(answer, item.get("references") or [item["expected"]])
    return {f"{_JSON_FIELDS}.{'.'.join(path)}": float(hit) for path, hit in hits.items()}


def as_plain(
    found: Differences, conditions: Iterable[Condition], failed: Iterable[Condition]
) -> dict[str, Any]:
    """The comparison as JSON has it; what is not known is null."""

    def table(comparisons: Mapping[str, Comparison]) -> dict[str, Any]:
        return {name: _known(asdict(c)) | _said(c) for name, c in comparisons.items()}

    return {
        "a": found.a.name,
        "b": found.b.name,
        "primary": found.primary,
        "metrics": table(found.metrics),
        "group_by": found.group_by,
        "groups": table(found.groups),
        "fields": table(found.fields),
        "num_worse": found.num_worse,
        "num_better": found.num_better,
        "worse": [asdict(one) for one in found.worse],
        "only_one_side_has": list(found.only),
        "gate": {"fail_if": [*map(str, conditions)], "failed": [*map(str, failed)]},
    }


def _said(comparison: Comparison) -> dict[str, Any]:
    return {
        "is_significant": comparison.is_significant,
        "is_equivalent": comparison.is_equivalent,
        "verdict": verdict(comparison),
    }


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in values.items()
    }


# -- on the terminal -------------------------------------------------------------------------------


def show(console: Console, found: Differences) -> None:
    """Print the tables, what they say and do not say, and the items that got worse."""
    for letter, side in (("A", found.a), ("B", found.b)):
        console.print(f"{letter}: {side.name}{_seeds(side)}", soft_wrap=True)
    console.print(_table("B against A", "metric", found.metrics))
    if found.groups:
        title = f"{found.primary} by {found.group_by}"
        console.print(_table(title, str(found.group_by), found.groups, f"{found.primary}["))
    if found.fields:
        console.print(_table("JSON fields", "field", found.fields, f"{_JSON_FIELDS}."))
    for note in notes(found):
        console.print(note, soft_wrap=True)
    show_worse(console, found)


def _seeds(side: Side) -> str:
    seeds = [str(run.seed) for run in side.runs if run.seed is not None]
    return f"  (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})" if seeds else ""


def _table(title: str, first: str, rows: Mapping[str, Comparison], prefix: str = "") -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column(first, overflow="fold", min_width=11)  # fits 80 characters
    for name in COLUMNS[:-1]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(COLUMNS[-1], min_width=13)
    for row, _ in named_cells(rows, prefix):
        table.add_row(*row)
    return table


COLUMNS = ("A", "B", "B - A", "95 % interval", "p", "verdict")


def named_cells(
    rows: Mapping[str, Comparison], prefix: str = ""
) -> Iterator[tuple[list[str], bool]]:
    """(name and COLUMNS, whether a difference is shown) of each comparison.

    Args:
        rows: name -> comparison.
        prefix: what all names begin with, and is left out; groups end in a bracket as well.
    """
    sizes = {one.num_items for one in rows.values()}
    for name, one in rows.items():
        short = name.removeprefix(prefix).removesuffix("]" if prefix.endswith("[") else "")
        size = f" ({one.num_items})" if len(sizes) > 1 else ""
        yield [short + "*" * one.is_corpus_level + size, *_cells(one)], one.is_significant


def _cells(one: Comparison) -> list[str]:
    p = one.p if one.p_holm is None else one.p_holm
    return [
        *(f"{mean:.4f}" for mean in one.means),
        f"{one.difference:+.4f}",
        "-" if math.isnan(one.low) else f"{one.low:+.4f}, {one.high:+.4f}",
        "<.001" if p < 0.001 else f"{p:.3f}",
        verdict(one),
    ]


def notes(found: Differences) -> list[str]:
    """What the tables do not say by themselves."""
    one = found.metrics[found.primary]
    clusters = "pictures" if found.cluster == "image" else f"values of {found.cluster}"
    told = [
        f"{one.num_items} items of {one.num_clusters} {clusters}, {_runs(one)}. A true difference of "
        f"{one.minimum_detectable:.4f} in {found.primary} would be found with 80 % power.",
        f"p: permutation over {clusters}, about these runs, Holm within each table. Interval: bootstrap over "
        + (clusters if max(one.num_seeds) == 1 else f"seeds and {clusters}")
        + ". A difference is called one where both say so.",
    ]
    if one.is_of_items_only:
        told.append("A side has one seed, so nothing is said about other seeds.")
    if any(c.is_corpus_level for c in found.metrics.values()):
        told.append("* The record's score is of the corpus; this is the mean of its items' scores.")
    if found.only:
        told.append(f"Only one side has {', '.join(found.only)}.")
    return told


def _runs(one: Comparison) -> str:
    if one.num_seeds == (1, 1):
        return "one run each"
    if one.is_paired:
        return f"{one.num_seeds[0]} runs each, paired by seed"
    return f"{one.num_seeds[0]} and {one.num_seeds[1]} runs, whose seeds are not paired"


def show_worse(console: Console, found: Differences) -> None:
    """Print the items that got worse most, with both answers."""
    console.print(
        f"\nGot worse in {found.primary}: {found.num_worse} items; better: {found.num_better}"
        + (f". The worst {len(found.worse)}:" if found.worse else ".")
    )
    for one in found.worse:
        pictures = f"  {', '.join(one.images)}" if one.images else ""
        console.print(f"\n{one.id}{pictures}  {one.change:+.3f}", soft_wrap=True)
        for label, text in (
            ("asked", one.prompt),
            ("expected", one.expected),
            ("A", one.answer_a),
            ("B", one.answer_b),
        ):
            console.print(f"  {label:9} {_short(text)}", soft_wrap=True)


def _short(text: str, most: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]} ..."
