"""Which settings a row is run with: those whose short runs scored best on validation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmpeft.study.planned_run import Candidate


@dataclass(frozen=True)
class Tried:
    """What a candidate's runs scored.

    Args:
        candidate: the settings.
        scores: the primary metric on the deciding split, one a seed; without one, every run failed.
        losses: on the same split.
    """

    candidate: Candidate
    scores: Sequence[float]
    losses: Sequence[float]

    @property
    def key(self) -> tuple[float, float]:
        """Larger is better: the mean score, then the lower loss."""
        return statistics.mean(self.scores), -statistics.mean(self.losses)


def choose(tried: Sequence[Tried]) -> Tried | None:
    """The best candidate; None if every run of the search failed. Of equals, the first."""
    usable = [t for t in tried if t.scores and not math.isnan(t.key[0] + t.key[1])]
    return max(usable, key=lambda t: t.key) if usable else None


def search_record(tried: Sequence[Tried], chosen: Tried, on: str) -> dict[str, Any]:
    """What a record says of the search; `at_edge` names settings whose best value is the smallest or largest tried."""
    return {
        "tried": len(tried),
        "on": on,
        "chosen": dict(chosen.candidate.settings),
        "at_edge": _at_edge([t.candidate.settings for t in tried], chosen.candidate.settings),
        "candidates": [
            {
                "settings": dict(t.candidate.settings),
                "scores": list(t.scores),
                "losses": [round(loss, 6) for loss in t.losses],
            }
            for t in tried
        ],
    }


def _at_edge(tried: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> list[str]:
    edges = []
    for key, value in chosen.items():
        values = {settings[key] for settings in tried if isinstance(settings[key], (int, float))}
        if len(values) > 2 and value in (min(values), max(values)):
            edges.append(key)
    return edges
