"""Successive halving: many arms for few steps, the better half of them for twice as many, and so on until one is left.

Jamieson and Talwalkar 2016 (arXiv:1502.07943), figure 3; with the factor 2 the inner loop of Hyperband (Li et al. 2018, arXiv:1603.06560,
section 3). Half is rounded up here. Pure functions of numbers: nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Result:
    """What an arm scored in a rung.

    Args:
        score: the primary metric on validation, mean over seeds.
        loss: the same of the loss; of equal scores the lower loss is better.
    """

    score: float
    loss: float

    @property
    def is_usable(self) -> bool:
        return not math.isnan(self.score + self.loss)


@dataclass(frozen=True)
class Rung:
    """The arms that a rung compares.

    Args:
        number: from 0.
        steps: optimizer steps of each of its runs.
        arms: numbers of the arms, in the order of the field.
        results: arm -> what it scored; None is of one that failed. An arm that is missing is not over.
    """

    number: int
    steps: int
    arms: tuple[int, ...]
    results: dict[int, Result | None] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return set(self.results) == {*self.arms}


ResultOf = Callable[[int, int], "Result | None"]
"""(arm, steps) -> its result, None of one that failed. Raises KeyError for one that is not over."""


def num_rungs(arms: int) -> int:
    """How many rungs leave one arm of a field.

    >>> [num_rungs(n) for n in (1, 2, 3, 4, 5, 8, 9)]
    [1, 1, 2, 2, 3, 3, 4]
    """
    return max(1, (arms - 1).bit_length())


def sizes(arms: int) -> list[int]:
    """How many arms each rung of a field has.

    >>> sizes(9)
    [9, 5, 3, 2]
    """
    found = [arms]
    while len(found) < num_rungs(arms):
        found.append(-(-found[-1] // 2))
    return found


def rungs(arms: int, first_steps: int, result_of: ResultOf) -> list[Rung]:
    """The rungs that have begun; of these only the last may not be over.

    Args:
        arms: size of the field.
        first_steps: of the first rung; each other has twice as many as the one before.
        result_of: see there.
    """
    found: list[Rung] = []
    left = tuple(range(arms))
    for number in range(num_rungs(arms)):
        rung = Rung(number, first_steps * 2**number, left)
        for arm in left:
            try:
                rung.results[arm] = result_of(arm, rung.steps)
            except KeyError:
                continue
        found.append(rung)
        left = kept(rung) if rung.is_over else ()
        if len(left) < 2:
            break
    return found


def kept(rung: Rung) -> tuple[int, ...]:
    """The better half of a rung that is over, rounded up, in the order of the field; an arm that failed is never kept."""
    half = -(-len(rung.arms) // 2)
    best = [arm for arm in _best_first(rung) if _is_usable(rung.results[arm])][:half]
    return tuple(arm for arm in rung.arms if arm in best)


def ranking(found: Sequence[Rung]) -> list[tuple[int, Rung]]:
    """(arm, last finished rung it was in), the best first: who came further, then who scored better there.

    Nothing if no rung is over. What an unfinished rung says does not count.
    """
    over = [rung for rung in found if rung.is_over]
    ranked: list[tuple[int, Rung]] = []
    for rung in reversed(over):
        known = {arm for arm, _ in ranked}
        ranked += [(arm, rung) for arm in _best_first(rung) if arm not in known]
    return ranked


def _best_first(rung: Rung) -> list[int]:
    """The arms of a rung; of equals the first of the field, those that failed at the end."""

    def key(arm: int) -> tuple[bool, float, float]:
        result = rung.results[arm]
        if result is None or not result.is_usable:
            return True, 0.0, 0.0
        return False, -result.score, result.loss

    return sorted(rung.arms, key=key)


def _is_usable(result: Result | None) -> bool:
    return result is not None and result.is_usable


@dataclass(frozen=True)
class Cost:
    """What the runs of a field take.

    Args:
        arms: of the field.
        seeds: runs of each arm in a rung.
        step_seconds: of an optimizer step.
        run_seconds: of a run beside its steps: scoring, attaching, saving.
        most_steps: of a run that a table would report; no rung has more.
    """

    arms: int
    seeds: int
    step_seconds: float
    run_seconds: float
    most_steps: int

    def seconds(self, first_steps: int) -> float:
        """Of all rungs."""
        return self.seeds * sum(
            arms * (self.run_seconds + first_steps * 2**number * self.step_seconds)
            for number, arms in enumerate(sizes(self.arms))
        )


def first_steps(fields: Iterable[Cost], seconds: float) -> int:
    """The most steps that the first rung of every field may have for all rungs to end in time; 0 if not even one.

    >>> first_steps([Cost(4, 1, step_seconds=1.0, run_seconds=5.0, most_steps=1000)], 70)
    5
    """
    fields = list(fields)
    fixed = sum(cost.seconds(0) for cost in fields)
    slope = sum(cost.seconds(1) for cost in fields) - fixed
    longest = min(cost.most_steps // 2 ** (num_rungs(cost.arms) - 1) for cost in fields)
    affordable = math.floor((seconds - fixed) / slope + 1e-9)
    return max(0, min(affordable, max(1, longest)))
