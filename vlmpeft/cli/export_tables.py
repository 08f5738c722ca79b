"""An export's report in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def show(console: Console, report: dict[str, Any], out: Path) -> None:
    """Print a report as tables and lines."""
    gate = report["gate"]
    limit = "" if gate["tolerance"] is None else f" (tolerance {gate['tolerance']:g})"
    console.print(_routes_table(report))
    console.print(
        f"gate passed: {gate['exported']} against {gate['reference']}: max |delta logits| {gate['max_logit']:.2e}{limit}, "
        f"mean KL {gate['mean_kl']:.2e}, where the adapter itself makes {gate['effect_of_adapter']['mean_kl']:.2e}",
        soft_wrap=True,
    )
    if projector := report.get("projector"):
        console.print(_projector_line(projector), soft_wrap=True)
    for note in (*report["notes"], *report.get("vllm", {}).get("ignored", ())):
        console.print(f"note: {note}", soft_wrap=True)
    for name, reason in report["not_exported"].items():
        console.print(f"not exported: {name}: {reason}", soft_wrap=True, markup=False)
    console.print(
        f"{len(report['tensors'])} of the adapter's tensors exported, {len(report['not_exported'])} not",
        soft_wrap=True,
    )
    console.print(f"{report['to']}: {out}", soft_wrap=True, markup=False)
    if "vllm" in report:
        console.print(report["vllm"]["serve"], soft_wrap=True, markup=False)


def _routes_table(report: dict[str, Any]) -> Table:
    table = Table(title="answers beside those of the adapter attached as it was trained")
    table.add_column("route", no_wrap=True)
    for column in ("|d logits|", "mean KL", "argmax", "text"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report["routes"]:
        table.add_row(
            row["route"] + (" *" if row["written"] else ""),
            f"{row['max_logit']:.2e}",
            f"{row['mean_kl']:.2e}",
            *(f"{100 * row[key]:.1f}%" for key in ("argmax_agreement", "text_agreement")),
        )
    table.caption = "* written, and measured as reloaded from disk"
    return table


def _projector_line(projector: dict[str, Any]) -> str:
    change, loss, exact = projector["change"], projector["loss"], projector["exact_match"]
    return (
        f"projector as LoRA of rank {projector['rank']}: keeps {100 * projector['energy']:.2f} % of the squared norm of dW; max |delta "
        f"logits| {change['max_logit']:.2e}, mean KL {change['mean_kl']:.2e}, same text {100 * change['text_agreement']:.1f} %; loss "
        f"{loss[0]:.4f} -> {loss[1]:.4f}, exact match {100 * exact[0]:.1f} % -> {100 * exact[1]:.1f} %"
    )
