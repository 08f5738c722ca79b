"""An audit in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vlmpeft.data.audit.audit import Audit, SplitAudit
from vlmpeft.data.audit.findings import Finding
from vlmpeft.data.batches.token_view import TokenView

_BAR = 40  # characters of the longest bar
_EXAMPLES = 5


def print_audit(console: Console, audit: Audit) -> None:
    """Numbers a split, lengths, answers, groups, samples token by token, and last what to look at."""
    console.print(_numbers(audit.splits))
    for name, split in audit.splits.items():
        console.print(f"\ntokens of a conversation, {name}:")
        for line in histogram_lines(split):
            console.print(line, markup=False)
    for name, split in audit.splits.items():
        console.print(_commonest(name, split))
    if audit.groups:
        console.print(_groups(audit.groups))
    for view in audit.samples:
        console.print(_tokens(view))
    for finding in audit.findings:
        for line in finding_lines(finding):
            console.print(line, markup=False, soft_wrap=True)
    if not audit.findings:
        console.print("nothing to complain about")


def _numbers(splits: dict[str, SplitAudit]) -> Table:
    table = Table(title="data")
    table.add_column("")
    for name in splits:
        table.add_column(name, justify="right")
    for label, cells in number_rows(splits):
        table.add_row(label, *cells)
    return table


def number_rows(splits: dict[str, SplitAudit]) -> Iterator[tuple[str, list[str]]]:
    """(label, a cell a split)."""
    every = splits.values()
    yield "conversations", [f"{s.conversations:,}" for s in every]
    yield "answers", [f"{s.answers:,}" for s in every]
    yield "different answers", [f"{s.distinct_answers:,}" for s in every]
    yield "images", [f"{s.images:,}" for s in every]
    yield "different images", [f"{s.distinct_images:,}" for s in every]
    yield "without an image", [f"{s.text_only:,}" for s in every]
    for number, label in enumerate(("shortest", "median", "95 %", "longest")):
        yield f"tokens, {label}", [f"{s.lengths[number]:,}" for s in every]
    yield "image tokens", [f"{s.image_share:.1%}" for s in every]
    yield "supervised tokens", [f"{s.supervised_share:.1%}" for s in every]


def histogram_lines(split: SplitAudit) -> Iterator[str]:
    """One line a bin: range, bar, count."""
    most = max(count for _, _, count in split.histogram)
    for low, high, count in split.histogram:
        bar = "#" * -(-_BAR * count // most)
        yield f"  {span(low, high):>15}  {bar:<{_BAR}} {count:,}"


def span(low: int, high: int) -> str:
    """A range in words.

    >>> span(7, 7), span(1000, 1999)
    ('7', '1,000 to 1,999')
    """
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _commonest(name: str, split: SplitAudit) -> Table:
    table = Table(title=f"commonest answers, {name}")
    table.add_column("answer")
    table.add_column("times", justify="right")
    table.add_column("share", justify="right")
    for answer, count in split.commonest[:_EXAMPLES]:
        table.add_row(Text(answer[:70]), f"{count:,}", f"{count / split.answers:.1%}")
    return table


def _groups(groups: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="groups: what always giving the commonest answer would get")
    for column in ("group", "answers", "different", "commonest answer", "share"):
        table.add_column(column)
    for name, group in groups.items():
        numbers = f"{group['answers']:,}", f"{group['distinct']:,}"
        table.add_row(Text(name), *numbers, Text(group["commonest"][:50]), f"{group['share']:.1%}")
    return table


def _tokens(view: TokenView) -> Group:
    """Every token between bars; learnt ones green, image tokens as a count."""
    text, role = Text(), ""
    for row in view.rows:
        if row.role != role:
            role = row.role
            text.append(f"\n  {role:>9}  ", style="bold")
        shown = f"[{row.count} image tokens]" if row.is_image else row.text.replace("\n", "\\n")
        style = "bold green" if row.is_learnt else "cyan" if row.is_image else ""
        text.append(f"*{shown}*" if row.is_learnt else shown, style=style)
        text.append("|", style="dim")
    if view.hidden:
        text.append(f"\n  and {view.hidden:,} more tokens")
    title = Text(f"\n{view.id}: *learnt* tokens, {len(view.images)} image(s)")
    return Group(title, text)


def finding_lines(finding: Finding) -> Iterator[str]:
    """The finding and its first examples."""
    yield f"{finding.level}: {finding.text}"
    for example in finding.examples[:_EXAMPLES]:
        yield f"    {example}"
    if len(finding.examples) > _EXAMPLES:
        yield f"    and {len(finding.examples) - _EXAMPLES} more"
