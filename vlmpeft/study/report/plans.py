"""The plan of a record, as it was configured: what was done to each component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vlmpeft.study.report.entries import without_folders
from vlmpeft.study.report.settings import written

COMPONENTS = ("vision", "projector", "language")


@dataclass(frozen=True)
class Planned:
    """One strategy on one component.

    Args:
        component: vision, projector or language.
        strategy: short name, or the dotted path of a user's own.
        knobs: its settings.
    """

    component: str
    strategy: str
    knobs: Mapping[str, Any]

    def __str__(self) -> str:
        """As an appendix says it: `LoRA, r 16, alpha 32.0`; a knob that is empty or null is left out."""
        known = {k: v for k, v in self.knobs.items() if v not in (None, {}, [])}
        given = [f"{key} {without_folders(written(value))}" for key, value in known.items()]
        return ", ".join([self.strategy, *given])


def planned(record: Mapping[str, Any]) -> Iterator[Planned]:
    """The strategies of a record's plan, component by component; frozen ones are left out."""
    plan = ((record.get("config") or {}).get("model") or {}).get("plan") or {}
    for component in COMPONENTS:
        entries = plan.get(component)
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, Mapping) and "class_path" in entry:
                name = _short(str(entry["class_path"]))
                if name != "Frozen":
                    knobs = entry.get("init_args")
                    yield Planned(component, name, knobs if isinstance(knobs, Mapping) else {})


def _short(path: str) -> str:
    return path.rpartition(".")[2] if path.startswith("vlmpeft.") else path
