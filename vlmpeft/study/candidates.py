"""What the search for settings tries: the same number of candidates for every row."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from vlmpeft.strategies import Strategy
from vlmpeft.strategies.plan import Plan
from vlmpeft.study.plan_settings import difference, with_strategies
from vlmpeft.study.settings import Settings
from vlmpeft.study.spec import Search

RATE, FACTOR = "learning_rate", "learning_rate_factor"


@dataclass(frozen=True)
class Candidate:
    """One try of a search.

    Args:
        label: its folder's name, e.g. `learning_rate=0.001`.
        chosen: key of the search -> value.
        settings: dotted key -> value, over those of the row.
    """

    label: str
    chosen: Settings
    settings: Settings


def candidates_of(search: Search, plan: Plan) -> tuple[Candidate, ...]:
    """Every combination of what a search tries, on a row's plan.

    A learning rate is given to every strategy of the plan that trains, a factor multiplies the rate that each has.
    """
    values = itertools.product(*search.over.values())
    return tuple(_candidate(dict(zip(search.over, value, strict=True)), plan) for value in values)


def num_candidates(search: Search) -> int:
    """How many candidates every row gets."""
    return prod(map(len, search.over.values()))


def _candidate(chosen: dict[str, Any], plan: Plan) -> Candidate:
    settings: dict[str, Any] = {}
    for key, value in chosen.items():
        settings |= _rates(plan, key, value) if key in (RATE, FACTOR) else {key: value}
    label = "+".join(f"{key}={_folder_name(value)}" for key, value in chosen.items())
    return Candidate(label, chosen, settings)


def _rates(plan: Plan, key: str, value: float) -> Settings:
    def changed(_component: str, _place: int, strategy: Strategy) -> Strategy:
        rate = getattr(strategy, "learning_rate", None)
        if rate is None or not strategy.trains:
            return strategy
        return replace(strategy, learning_rate=value * rate if key == FACTOR else value)  # type: ignore[type-var, call-arg]

    return difference(plan, with_strategies(plan, changed))


def _folder_name(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._@=+-]+", "-", str(value)).strip("-")
