"""A merge in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlmpeft.merging.conflicts import Conflict


def show(console: Console, summary: dict[str, Any], found: list[Conflict], explained: bool) -> None:
    """Print a merge that was written as an adapter.

    Args:
        console: where.
        summary: of the merge.
        found: conflicts before it.
        explained: whether there is a picture of them.
    """
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


def show_whole(console: Console, report: dict[str, Any], out: Path, found: list[Conflict]) -> None:
    """Print a merge that was written as a checkpoint.

    Args:
        console: where.
        report: of the merge.
        out: the folder.
        found: conflicts before it; empty if they were not asked for.
    """
    gate, recipe = report["gate"], report["recipe"]
    parts = ", ".join(f"{name} {number}" for name, number in report["components"].items() if number)
    lines = [
        f"{recipe['method']} of {len(report['adapters'])} adapters into {report['base']['id']}: {parts} tensors",
        f"gate passed: {gate['tensors_read_back']} tensors read back as meant, {gate['bytes_of_base_unchanged']} bytes as in the base",
        f"storing W + dW in {report['width']} lost {100 * report['lost_in_rounding']:.3g} % of the norm of dW",
    ]
    if "max_logit" in gate:
        lines.append(
            f"gate passed: {gate['samples']} answers as the merge attached to the base gives them: max |delta logits| "
            f"{gate['max_logit']:.2e}, mean KL {gate['mean_kl']:.2e}, where the merge itself makes "
            f"{gate['effect_of_adapter']['mean_kl']:.2e}"
        )
    else:
        lines.append("answers were not compared (--gate weights)")
    lines += [f"note: {note}" for note in report["notes"]] + [f"merged: {out}"]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    if found:
        console.print(_conflict_table(found))
