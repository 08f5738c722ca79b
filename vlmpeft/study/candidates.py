"""What the search for settings tries: the same number of candidates for every row."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from math import prod
from typing import Any

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import Strategy
from vlmpeft.strategies.plan import Plan
from vlmpeft.study.plan_settings import difference, with_strategies
from vlmpeft.study.planned_run import Candidate
from vlmpeft.study.settings import Settings, as_arguments
from vlmpeft.study.spec import Search

RATE, FACTOR = "learning_rate", "learning_rate_factor"


def candidates_of(search: Search, plan: Plan) -> tuple[Candidate, ...]:
    """Every combination of what a search tries, on a row's plan.

    A learning rate is given to every strategy of the plan that trains, a factor multiplies the rate that each has.

    Raises:
        UserError: two candidates whose folders would have one name.
    """
    values = itertools.product(*search.over.values())
    found = [_candidate(dict(zip(search.over, value, strict=True)), plan) for value in values]
    if double := [one.label for one in found if [o.label for o in found].count(one.label) > 1]:
        raise UserError(
            f"search: two of its candidates would be the folder {double[0]}; leave one out"
        )
    return tuple(found)


def num_candidates(search: Search) -> int:
    """How many candidates every row gets."""
    return prod(map(len, search.over.values()))


def _candidate(chosen: dict[str, Any], plan: Plan) -> Candidate:
    settings: dict[str, Any] = {}
    for key, value in chosen.items():
        settings |= _rates(plan, key, value) if key in (RATE, FACTOR) else {key: value}
    label = "+".join(f"{key}={_folder_name(value)}" for key, value in chosen.items())
    return Candidate(label, chosen, tuple(as_arguments(settings)))


def _rates(plan: Plan, key: str, value: float) -> Settings:
    def changed(_component: str, _place: int, strategy: Strategy) -> Strategy:
        rate = getattr(strategy, "learning_rate", None)
        if rate is None or not strategy.trains:
            return strategy
        return replace(strategy, learning_rate=value * rate if key == FACTOR else value)  # type: ignore[type-var, call-arg]

    return difference(plan, with_strategies(plan, changed))


def _folder_name(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._@=+-]+", "-", str(value)).strip("-")
