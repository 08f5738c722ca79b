"""What a plan trains, as a table: component by component, with its leaks."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from vlmpeft.base.loading import actual_bits
from vlmpeft.preflight.leaks import leak_notes
from vlmpeft.strategies.plan import AttachedPlan


def plan_table(attached: AttachedPlan, widths: Mapping[str, str] | None = None) -> Table:
    """Component, strategy, modules matched, trainable, share, bits and learning rate of an attached plan.

    Under it, where its targets would have landed too, had they been matched by suffix.

    Args:
        attached: a plan on a model.
        widths: component -> width, of a model without weights; else what the weights really are.
    """
    summary = attached.summary()
    bits = widths or actual_bits(attached.model, attached.components)
    table = Table(
        title=f"{summary['trainable']:,} of {summary['total']:,} + {summary['added']:,} parameters are trained "
        f"({summary['percent']} %)",
        caption="\n".join(leak_notes(attached, explicit_only=True)),
        caption_justify="left",
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
