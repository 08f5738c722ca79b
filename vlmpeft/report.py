"""What a run shows and writes for people: the plan's table, the scores' table, the model card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vlmpeft.base import actual_bits
from vlmpeft.plan import AttachedPlan, Plan
from vlmpeft.records import folder_bytes

Metrics = dict[str, dict[str, dict[str, float]]]  # base | tuned -> split -> metric -> value


def plan_table(attached: AttachedPlan) -> Table:
    """Component, strategy, modules matched, trainable, share, bits and learning rate of an attached plan."""
    summary, bits = attached.summary(), actual_bits(attached.model, attached.components)
    table = Table(
        title=f"{summary['trainable']:,} of {summary['total']:,} + {summary['added']:,} parameters are trained "
        f"({summary['percent']} %)"
    )
    for column in ("component", "strategy", "modules", "trainable", "%", "bits", "learning rate"):
        table.add_column(
            column, justify="left" if column in ("component", "strategy", "bits") else "right"
        )
    whole = summary["total"] + summary["added"]
    for name, component in summary["components"].items():
        for entry in component["strategies"]:
            trainable = entry["trainable"]
            rate = f"{entry['learning_rate']:g}" if entry["learning_rate"] else "-"
            table.add_row(
                name,
                entry["name"],
                str(len(entry["targets"])),
                f"{trainable:,}",
                f"{100 * trainable / whole:.3f}",
                bits.get(name, "-"),
                rate,
            )
    return table


def device_name(device: torch.device) -> str:
    """The accelerator's name, or how many CPU threads were used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def print_result(console: Console, title: str, metrics: Metrics, adapter: Path) -> None:
    """The scores before and after, where the adapter is, and the three commands one would run next."""
    table = Table(title=title)
    for column in ("split", "metric", "base", "tuned"):
        table.add_column(column, justify="left" if column in ("split", "metric") else "right")
    for row in _score_rows(metrics):
        table.add_row(*row)
    if table.row_count:
        console.print(table)
    run_dir, size = adapter.parent, folder_bytes(adapter) / 2**20
    console.print(f"adapter: {adapter} ({size:.2f} MiB), record: {run_dir / 'result.json'}")
    console.print("next:")
    for verb in (
        f"test --adapter {adapter}",
        f"predict --adapter {adapter}",
        f"fit --config {run_dir / 'config.yaml'} --init_adapter {adapter} --data.train MORE.json",
    ):
        console.print(f"  python -m vlmpeft {verb}", soft_wrap=True)


def model_card(name: str, base: dict[str, Any], plan: Plan, metrics: Metrics) -> str:
    """README.md of an adapter: its base, its plan, its scores."""
    rows = [f"| {' | '.join(row)} |" for row in _score_rows(metrics)]
    table = "\n".join(["| split | metric | base | tuned |", "|---|---|---|---|", *rows])
    strategies = "\n".join(
        f"- {component}: {entries}" for component, entries in plan.to_dict().items()
    )
    return (
        f"---\nbase_model: {base['id']}\nlibrary_name: peft\n---\n# {name}\n\n"
        f"An adapter of {base['id']} (fingerprint {base['fingerprint']}), trained by vlmpeft.\n\n"
        f"{strategies}\n\n{table}\n"
    )


def _score_rows(metrics: Metrics) -> Iterator[tuple[str, str, str, str]]:
    for split, tuned in metrics["tuned"].items():
        for name, value in tuned.items():
            yield split, name, f"{metrics['base'][split][name]:.4f}", f"{value:.4f}"
