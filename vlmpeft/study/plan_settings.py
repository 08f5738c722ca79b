"""A plan changed: each of its strategies replaced, and the difference as settings of a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from vlmpeft.strategies import Strategy
from vlmpeft.strategies.plan import Plan, Strategies
from vlmpeft.study.settings import Settings


def with_strategies(plan: Plan, changed: Callable[[str, int, Strategy], Strategy]) -> Plan:
    """The plan with each strategy replaced.

    Args:
        plan: as it is.
        changed: (component, place in its list, strategy) -> strategy.
    """

    def of(component: str) -> Strategies:
        found = [changed(component, n, one) for n, one in enumerate(plan.of(component))]
        return found if isinstance(getattr(plan, component), list) else found[0]

    return Plan(**{part.name: of(part.name) for part in fields(plan)})


def difference(before: Plan, after: Plan) -> dict[str, Any]:
    """What turns one plan into another of the same strategies, by dotted keys.

    A component with a list of strategies is given whole: what is overlaid on a list is the list.
    """
    old, new = before.to_dict(), after.to_dict()
    return {
        key: value
        for name in new
        if old[name] != new[name]
        for key, value in _of_component(name, old[name], new[name]).items()
    }


def _of_component(name: str, old: list[Any], new: list[Any]) -> Settings:
    if len(new) > 1:
        return {f"model.plan.{name}": new}
    (was,), (is_now,) = old, new
    return {
        f"model.plan.{name}.init_args.{key}": value
        for key, value in is_now["init_args"].items()
        if was["init_args"][key] != value
    }
