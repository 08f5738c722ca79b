"""An estimate as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from vlmpeft.base.components import COMPONENTS
from vlmpeft.preflight.forecast import CHECKPOINTED, DEFAULT_RANK, PLAIN
from vlmpeft.preflight.static_memory import FULL_FINE_TUNING_BYTES

GB = 10**9
_TITLES = {"plan": "plan", "full": "full fine-tuning", "qlora": "QLoRA"}


def print_report(console: Console, report: dict[str, Any]) -> None:
    """The convention, a table with a column a case, and what stands beside it."""
    console.print(_header(report), soft_wrap=True)
    table = Table(title="GB (1e9 bytes)")
    table.add_column("")
    for name in report["rows"]:
        rank = f" r={report['rank'] or DEFAULT_RANK}" if name == "qlora" else ""
        table.add_column(_TITLES[name] + rank, justify="right")
    for label, cells in _lines(report["rows"]):
        table.add_row(label, *cells)
    console.print(table)
    for line in _footer(report):
        console.print(line, soft_wrap=True)


def _header(report: dict[str, Any]) -> str:
    where = "bf16 autocast on a GPU" if report["device"] == "cuda" else "fp32 on a CPU"
    return (
        f"{report['base']}, {sum(report['parameters'].values()):,} parameters, {where}; {report['batch']} conversations "
        f"of {report['tokens']} tokens, {report['image_tokens']} of them one picture's and "
        f"{report['answer_tokens']} supervised. Convention: frozen weights at their bits; what is trained in fp32 "
        f"with an fp32 gradient and {report['optimizer']}'s two fp32 moments, 16 bytes a trained parameter."
    )


def _lines(rows: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for name in COMPONENTS:
        if any(row["weights"][name] for row in rows.values()):
            yield f"weights, {name}", [_widths(row["weights"][name]) for row in rows.values()]
    for label, key in (
        ("adapters", "adapter_bytes"),
        ("gradients", "gradient_bytes"),
        ("optimizer", "optimizer_bytes"),
    ):
        yield label, [_gb(row[key]) for row in rows.values()]
    for kind, suffix in ((PLAIN, ""), (CHECKPOINTED, ", checkpointed")):
        steps = [row["steps"].get(kind) for row in rows.values()]
        yield f"activations{suffix}", [_gb(s and s["saved_bytes"]) for s in steps]
        if kind == PLAIN:
            yield "logits", [_gb(s and s["logits_bytes"]) for s in steps]
    for kind, suffix in ((PLAIN, ""), (CHECKPOINTED, ", checkpointed")):
        yield f"peak of a step{suffix}", [_gb(row["peak_bytes"].get(kind)) for row in rows.values()]
    yield from _flop_lines(rows)


def _flop_lines(rows: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    plain = [row["steps"].get(PLAIN) for row in rows.values()]
    for name in COMPONENTS:
        flops = [step and step["forward_flops"].get(name, 0) for step in plain]
        if any(flops):
            yield f"TFLOP forward, {name}", [_tera(value) for value in flops]
    for kind, suffix in ((PLAIN, ""), (CHECKPOINTED, ", checkpointed")):
        steps = [row["steps"].get(kind) for row in rows.values()]
        yield f"TFLOP backward{suffix}", [_tera(s and s["backward_flops"]) for s in steps]


def _footer(report: dict[str, Any]) -> Iterator[str]:
    known, rows = report["conventions"], report["rows"]
    yield (
        f"full fine-tuning at {FULL_FINE_TUNING_BYTES} bytes a parameter (bf16 weight and gradient, fp32 master weight "
        f"and two moments): {_gb(known[f'full_{FULL_FINE_TUNING_BYTES}_bytes_a_parameter'])} GB, with vision frozen in bf16 "
        f"{_gb(known['full_vision_frozen_in_bf16'])} GB"
    )
    yield (
        "the literature's shortcut (half a byte a base parameter, two bytes an adapter parameter): plan "
        f"{_gb(known['shortcut'])} GB, QLoRA {_gb(known['shortcut_qlora'])} GB; weights and adapters as they are: plan "
        f"{_gb(_held(rows['plan']))} GB, QLoRA {_gb(_held(rows['qlora']))} GB"
    )
    for name, row in rows.items():
        if row["unknown"]:
            yield f"{_TITLES[name]}: not everything could be rehearsed: {row['unknown']}"
    if fits := report.get("largest"):
        how = "with" if report["gradient_checkpointing"] else "without"
        batches = ", ".join(f"{_TITLES[n]} {b}" for n, b in fits["batch"].items())
        yield f"largest batch in {fits['bytes'] / GB:g} GB, {how} checkpointing: {batches}"
        yield f"largest rank of the plan in {fits['bytes'] / GB:g} GB, batch {report['batch']}: {fits['rank']}"


def _held(row: dict[str, Any]) -> int:
    return row["weight_bytes"] + row["adapter_bytes"]


def _widths(widths: dict[str, int]) -> str:
    return f"{_gb(sum(widths.values()))} {'+'.join(widths)}"


def _gb(value: int | None) -> str:
    """Three decimals from a GB on, else three digits."""
    if value is None:
        return "-"
    return f"{value / GB:.3f}" if value >= GB or not value else f"{value / GB:.3g}"


def _tera(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e12:.4g}"
