"""Rows of equal size: rank, width or tokens of each component solved for a number of trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import Strategy
from vlmpeft.strategies.plan import Plan
from vlmpeft.study.cells import IllegalCell
from vlmpeft.study.knobs import Knob, knob_of
from vlmpeft.study.plan_settings import with_strategies
from vlmpeft.study.spec import Match

Count = Callable[[Plan], int]  # trainable parameters of a plan on a base; raises UserError
_MOST = 2**20  # of a knob
_Place = tuple[str, int]  # component, place in its list of strategies


@dataclass(frozen=True)
class Matched:
    """A plan of the size that was asked for.

    Args:
        plan: with its knobs turned.
        knobs: what was chosen, e.g. {"language.r": 13}.
        trainable: parameters it comes to.
    """

    plan: Plan
    knobs: dict[str, int]
    trainable: int


@dataclass(frozen=True)
class _Part:
    """One strategy of a plan that has a knob."""

    place: _Place
    strategy: Strategy
    knob: Knob
    share: float  # of what all parts have together

    def sized(self, value: int) -> Strategy:
        return self.knob.turned(self.strategy, value)

    def alone(self, value: int) -> Plan:
        """A plan of this strategy alone, at a value of its knob."""
        return Plan(**{self.place[0]: self.sized(value)})


def match_plan(plan: Plan, match: Match, count: Count) -> Matched:
    """The plan with the number of trainable parameters that is asked for.

    What has no knob keeps its size. The rest of the parameters is shared equally by the components that have one, and in a
    component by its strategies. The coarsest knob is turned first and the finest last, to what is left then.

    Args:
        plan: of a row.
        match: parameters, and by what share they may be missed.
        count: trainable parameters of a plan on the row's base.

    Raises:
        UserError: nothing of the plan has a knob.
        IllegalCell: no value of the knobs is near enough; with the closest.
    """
    parts = list(_parts(plan))
    if not parts:
        raise UserError(
            "match_parameters: none of its strategies has a rank, a width or a number of tokens to choose; "
            "give the row match: false"
        )
    values = _solve(parts, match.total - _fixed(plan, parts, count), count)
    sized = {part.place: part.sized(values[part.place]) for part in parts}
    matched = with_strategies(plan, lambda name, n, one: sized.get((name, n), one))
    trainable = count(matched)
    if abs(trainable - match.total) > match.tolerance * match.total:
        raise IllegalCell(_missed(match, trainable, parts, values, count))
    knobs = {_named(part, plan): values[part.place] for part in parts}
    return Matched(matched, knobs, trainable)


def _parts(plan: Plan) -> Iterator[_Part]:
    found = {
        (field.name, n): (one, knob)
        for field in fields(plan)
        for n, one in enumerate(plan.of(field.name))
        if (knob := knob_of(one))
    }
    components = [name for name, _ in found]
    for place, (one, knob) in found.items():
        share = 1 / len({*components}) / components.count(place[0])
        yield _Part(place, one, knob, share)


def _fixed(plan: Plan, parts: list[_Part], count: Count) -> int:
    """Parameters of what has no knob."""
    free = {part.place for part in parts}
    rest = {
        field.name: [
            one for n, one in enumerate(plan.of(field.name)) if (field.name, n) not in free
        ]
        for field in fields(plan)
    }
    return count(Plan(**rest))


def _solve(parts: list[_Part], total: int, count: Count) -> dict[_Place, int]:
    """A value of each part's knob, which together come as near to `total` as the finest knob allows."""
    *coarse, finest = sorted(parts, key=lambda part: -_step(part, count))
    values, left = dict[_Place, int](), total
    for part in coarse:
        value = closest(lambda k, part=part: count(part.alone(k)), total * part.share)
        values[part.place], left = value, left - count(part.alone(value))
    return values | {finest.place: closest(lambda k: count(finest.alone(k)), left)}


def _step(part: _Part, count: Count) -> int:
    """Parameters that one more of a knob adds."""
    one = count(part.alone(1))
    two = _size_or_none(lambda k: count(part.alone(k)), 2)
    return one if two is None else two - one


def closest(size: Callable[[int], int], target: float) -> int:
    """The k >= 1 with size(k) nearest to `target`.

    Size grows with k, mostly along a line, on which the first guess is. Where size raises a UserError, k is too large.

    >>> closest(lambda k: 100 * k + 30, 1000), closest(lambda k: 100 * k, 3)
    (10, 1)
    """
    fitting = cache(lambda k: _size_or_none(size, k))
    first, second = size(1), fitting(2)
    step = max(1, (second or first) - first)
    guess = max(1, round(1 + (target - first) / step))
    reached = fitting(guess)
    if reached is not None and (guess == 1 or 2 * abs(reached - target) <= step):
        return guess
    low, high = _bracket(fitting, target)
    sizes = {k: found for k in (low, high) if (found := fitting(k)) is not None}
    return min(sizes, key=lambda k: abs(sizes[k] - target))


def _bracket(fitting: Callable[[int], int | None], target: float) -> tuple[int, int]:
    """(k, k + 1) around the target, or around the largest k that fits."""
    low, high = 1, 2
    while _is_below(fitting(high), target) and high < _MOST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _is_below(fitting(middle), target) else (low, middle)
    return low, high


def _is_below(size: int | None, target: float) -> bool:
    return size is not None and size < target


def _size_or_none(size: Callable[[int], int], k: int) -> int | None:
    try:
        return size(k)
    except UserError:
        return None


def _missed(
    match: Match, trainable: int, parts: list[_Part], values: dict[_Place, int], count: Count
) -> str:
    """Why no row has the size: the closest one, and what stands in the way."""
    knobs = ", ".join(f"{part.place[0]}.{part.knob.name}={values[part.place]}" for part in parts)
    limits = [reason for part in parts if (reason := _limit(part, values[part.place] + 1, count))]
    return (
        f"match_parameters {match.total:,}: the closest is {trainable:,} ({knobs}), "
        f"{100 * abs(trainable / match.total - 1):.1f} % off, more than {100 * match.tolerance:g} %"
        + "".join(f"; {reason}" for reason in limits)
    )


def _limit(part: _Part, value: int, count: Count) -> str:
    """Why a knob cannot be turned further; empty if it can."""
    try:
        count(part.alone(value))
    except UserError as error:
        return str(error)
    return ""


def _named(part: _Part, plan: Plan) -> str:
    """`language.r`; of several strategies of a component with the strategy's name."""
    component, _ = part.place
    kind = f".{type(part.strategy).__name__}" if len(plan.of(component)) > 1 else ""
    return f"{component}{kind}.{part.knob.name}"
