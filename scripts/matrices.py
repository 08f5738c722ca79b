"""docs/architectures.md and docs/conformance.md from the records that `make test-slow` writes."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMPONENTS, WIDTHS = ("vision", "projector", "language"), ("fp32", "nf4")


def records(folder: str) -> dict[str, dict]:
    """Family -> its record."""
    paths = sorted((ROOT / "results" / folder).glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def architectures() -> str:
    """What each family can do, and why not."""
    found = records("architectures")
    if not found:
        return "No record yet: `make test-slow`."
    checks = list(next(iter(found.values())))
    notes: list[str] = []
    rows = []
    for family, reasons in found.items():
        cells = []
        for check in checks:
            if reasons[check]:
                notes.append(f"{len(notes) + 1}. {family}, {check}: {reasons[check]}")
            cells.append(f"no [{len(notes)}]" if reasons[check] else "yes")
        rows.append([family, *cells])
    done = sum(not any(reasons.values()) for reasons in found.values())
    head = f"{len(found)} families were run; {done} pass every check."
    return "\n\n".join([head, markdown(["family", *checks], rows), "\n".join(notes)])


def kind_of(cell: object) -> str:
    """passed, refused or broken."""
    if isinstance(cell, str):
        return "passed"
    return "refused" if set(cell) == {"refused"} else "broken"


def conformance() -> str:
    """Strategies x components x widths, over all families."""
    found = records("conformance")
    if not found:
        return "No record yet: `make test-slow`."
    cells = {
        (strategy, component, width, family): cell
        for family, record in found.items()
        for strategy, components in record.items()
        for component, widths in components.items()
        for width, cell in widths.items()
    }
    kinds = [kind_of(cell) for cell in cells.values()]
    head = (
        f"{len(found)} families, {len(cells):,} cells: {kinds.count('passed'):,} keep every law, "
        f"{kinds.count('refused'):,} are refused by name, {kinds.count('broken'):,} break one."
    )
    strategies = list(next(iter(found.values())))
    rows = [[s, *(_counts(cells, s, c, w) for c in COMPONENTS for w in WIDTHS)] for s in strategies]
    columns = [f"{component} {width}" for component in COMPONENTS for width in WIDTHS]
    parts = [head, markdown(["strategy", *columns], rows)]
    parts += ["## Broken", _listed(cells, "broken"), "## Refused", _listed(cells, "refused")]
    return "\n\n".join(part for part in parts if part)


def _counts(cells: dict, strategy: str, component: str, width: str) -> str:
    """`passed / refused / broken` families."""
    here = [
        kind_of(cell)
        for (s, c, w, _), cell in cells.items()
        if (s, c, w) == (strategy, component, width)
    ]
    return " / ".join(str(here.count(kind)) for kind in ("passed", "refused", "broken"))


def _listed(cells: dict, kind: str) -> str:
    """One line a reason, with the families it is given for."""
    families = defaultdict(list)
    for (strategy, component, width, family), cell in cells.items():
        if kind_of(cell) == kind:
            reasons = {law: reason for law, reason in cell.items() if reason}
            said = "; ".join(
                reason if law == "refused" else f"law {law}: {reason}"
                for law, reason in reasons.items()
            )
            families[(strategy, component, _without_names(said))].append(f"{family} {width}")
    lines = [
        f"- {strategy} on {component}: {reason} ({_shortened(names)})"
        for (strategy, component, reason), names in families.items()
    ]
    return "\n".join(lines) or "None."


def _without_names(reason: str) -> str:
    """Reasons that differ in what a model calls its layers are one."""
    short = reason.split("; it has ")[0].split(" (first: ")[0].split(": model.")[0]
    return textwrap.shorten(short.replace("|", "/"), 200, placeholder=" ...")


def _shortened(names: list[str]) -> str:
    """`a, b` instead of `a fp32, a nf4, b fp32`; how many if they are many."""
    once = list(dict.fromkeys(name.split(" ")[0] for name in names))
    widths = list(dict.fromkeys(name.split(" ")[1] for name in names))
    shown = ", ".join(once) if len(once) <= 6 else f"{len(once)} families"
    return f"{shown}; {', '.join(widths)}"


PAGES = {"docs/architectures.md": architectures, "docs/conformance.md": conformance}
