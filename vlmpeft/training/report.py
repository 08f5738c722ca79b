"""What a run shows and writes for people: the scores' table, the model card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vlmpeft.runtime.provenance import folder_bytes
from vlmpeft.strategies.plan import Plan
from vlmpeft.training.saved_config import names_from_outside

Metrics = dict[str, dict[str, dict[str, float]]]  # base | tuned -> split -> metric -> value


def device_name(device: torch.device) -> str:
    """The accelerator's name, or how many CPU threads were used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def print_result(console: Console, title: str, record: dict[str, Any], adapter: Path) -> None:
    """The scores before and after, where the adapter is, and the three commands one would run next."""
    table = _table(title, "split", "metric", "base", "tuned")
    for row in _score_rows(record["metrics"]):
        table.add_row(*row)
    if table.row_count:
        console.print(table)
    split = next((s for s in ("test", "val") if s in record["metrics"]["tuned"]), None)
    if split and (details := _details(record["metrics"], split)).row_count:
        console.print(details)
    if split and record["groups"]:
        base, tuned = (record["groups"][state][split] for state in ("base", "tuned"))
        console.print(group_table(f"{split} by group", tuned, base))
    for name, scores in (record["controls"] or {}).items():
        shown = ", ".join(f"{metric} {scores[metric]:.4f}" for metric in headlines(scores))
        console.print(f"control, {name} pictures: {shown}")
    run_dir, size = adapter.parent, folder_bytes(adapter) / 2**20
    console.print(f"adapter: {adapter} ({size:.2f} MiB), record: {run_dir / 'result.json'}")
    console.print("next:")
    # a config with code of the user's own is trusted where it is named
    named = f" --config {run_dir / 'config.yaml'}" if names_from_outside(record["config"]) else ""
    for verb in (
        f"{'validate' if split == 'val' else 'test'} --adapter {adapter}{named}",
        f"predict --adapter {adapter}{named}",
        f"fit --config {run_dir / 'config.yaml'} --init_adapter {adapter} --data.train MORE.json",
    ):
        console.print(f"  python -m vlmpeft {verb}", soft_wrap=True)


def _details(metrics: Metrics, split: str) -> Table:
    """What metrics of several numbers say of a split: parse rate, each field, ..."""
    table = _table(f"{split} in detail", "metric", "base", "tuned")
    base, tuned = metrics["base"][split], metrics["tuned"][split]
    for name in tuned:
        if "/" in name:
            before = f"{base[name]:.4f}" if name in base else "-"
            table.add_row(name, before, f"{tuned[name]:.4f}")
    return table


def group_table(
    title: str, tuned: dict[str, dict[str, float]], base: dict[str, dict[str, float]] | None = None
) -> Table:
    """One row a group: items and headline scores, as `before -> after` if `base` is given."""
    names = list(dict.fromkeys(name for scores in tuned.values() for name in headlines(scores)))
    table = _table(title, "group", "items", *names)
    for group, scores in tuned.items():
        before = base[group] if base else {}
        cells = [_change(before.get(name), scores.get(name)) for name in names]
        table.add_row(group, str(int(scores["items"])), *cells)
    return table


def _change(before: float | None, after: float | None) -> str:
    shown = "-" if after is None else f"{after:.3f}"
    return shown if before is None else f"{before:.3f} -> {shown}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for number, column in enumerate(columns):
        is_text = number == 0 or column == "metric"
        table.add_column(column, justify="left" if is_text else "right")
    return table


def headlines(scores: dict[str, float]) -> list[str]:
    """Names without a suffix: what is shown where there is no room for every detail."""
    return [name for name in scores if "/" not in name and name != "items"]


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
        for name in headlines(tuned):
            yield split, name, f"{metrics['base'][split][name]:.4f}", f"{tuned[name]:.4f}"
