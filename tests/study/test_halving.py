"""Successive halving: who survives, how long it takes, who is ranked where. Nothing is trained."""

import itertools
import math
import random

import pytest

from vlmpeft.study.halving import (
    Cost,
    Result,
    first_steps,
    num_rungs,
    ranking,
    rungs,
    sizes,
)

FIELDS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 33]


def played(arms, score_of, first=1, over=lambda arm, steps: True):
    """The rungs of a field whose arms score what `score_of(arm, steps)` says; None is a failure."""

    def result_of(arm, steps):
        if not over(arm, steps):
            raise KeyError(arm)
        score = score_of(arm, steps)
        return None if score is None else Result(score, -score)

    return rungs(arms, first, result_of)


def brute_force(arms, score_of, first):
    """Who is in each rung, by the definition: sort by score, drop the worse half (rounded down) while there are two or more."""
    field, steps, found = list(range(arms)), first, []
    while True:
        found.append((steps, tuple(field)))
        ordered = sorted(field, key=lambda arm: score_of(arm, steps))  # worst first
        dropped = set(ordered[: len(field) // 2])
        field = [arm for arm in field if arm not in dropped]
        steps *= 2
        if len(field) == 1:
            return found


@pytest.mark.parametrize("arms", FIELDS)
def test_each_rung_has_the_better_half_of_the_one_before(arms):
    for seed in range(5):
        draw = random.Random(seed)
        scores = {key: draw.random() for key in itertools.product(range(arms), range(20))}

        def score_of(arm, steps, scores=scores):
            return scores[arm, int(math.log2(steps / 3))]

        found = played(arms, score_of, first=3)
        assert [(rung.steps, rung.arms) for rung in found] == brute_force(arms, score_of, 3)
        assert [len(rung.arms) for rung in found] == sizes(arms)
        assert all(rung.is_over for rung in found)


@pytest.mark.parametrize("arms", FIELDS)
def test_the_best_arm_wins_if_scores_do_not_change_with_steps(arms):
    order = list(range(arms))
    random.Random(arms).shuffle(order)
    found = played(arms, lambda arm, _: float(order[arm]))
    ranked = [arm for arm, _ in ranking(found)]
    assert ranked == sorted(range(arms), key=lambda arm: -order[arm])
    assert len(found) == num_rungs(arms) == max(1, math.ceil(math.log2(arms)))


def test_arm_that_came_further_is_ranked_before_one_with_a_better_score_in_an_earlier_rung():
    # rung 0: 0.9 0.8 0.1 0.2, rung 1: both fall below what arm 3 had
    scores = {1: [0.9, 0.8, 0.1, 0.2], 2: [0.05, 0.06, None, None]}
    found = played(4, lambda arm, steps: scores[steps][arm])
    assert [(arm, rung.number) for arm, rung in ranking(found)] == [(1, 1), (0, 1), (3, 0), (2, 0)]


def test_rung_that_is_not_over_does_not_count_and_promotes_nobody():
    def over(arm, steps):
        return steps == 1 or arm == 0

    found = played(8, lambda arm, _: float(-arm), over=over)
    assert [rung.is_over for rung in found] == [True, False]
    assert [(arm, rung.number) for arm, rung in ranking(found)] == [(arm, 0) for arm in range(8)]
    assert ranking(played(4, lambda *_: 1.0, over=lambda *_: False)) == []


def test_arm_that_failed_is_dropped_even_where_fewer_than_half_are_left():
    found = played(8, lambda arm, _: 1.0 if arm in (2, 5, 6) else None)
    assert found[1].arms == (2, 5, 6)
    assert {arm for arm, _ in ranking(found)[3:]} == {0, 1, 3, 4, 7}
    nan = played(4, lambda arm, _: float("nan") if arm else 0.0)
    assert [len(rung.arms) for rung in nan] == [4]  # one is left, so nothing more is run
    assert ranking(nan)[0][0] == 0
    assert len(played(4, lambda *_: None)) == 1


def test_of_equal_scores_the_lower_loss_and_then_the_first_row_is_kept():
    losses = [3.0, 2.0, 2.0, 4.0]
    found = rungs(4, 1, lambda arm, _: Result(0.0, losses[arm]))
    assert found[1].arms == (1, 2)
    assert [arm for arm, _ in ranking(found)] == [1, 2, 0, 3]


@pytest.mark.parametrize("seed", range(20))
def test_rungs_fit_the_budget_and_one_more_step_would_not(seed):
    draw = random.Random(seed)
    fields = [
        Cost(
            draw.randint(2, 20),
            draw.randint(1, 3),
            draw.uniform(0.01, 1),
            draw.uniform(0, 5),
            10**9,
        )
        for _ in range(draw.randint(1, 4))
    ]

    def takes(first):
        """Second by second: every run of every rung, one after another."""
        total = 0.0
        for field in fields:
            arms, steps = field.arms, first
            while True:
                for _ in range(arms * field.seeds):
                    total += field.run_seconds + steps * field.step_seconds
                arms, steps = math.ceil(arms / 2), steps * 2
                if arms == 1:
                    break
        return total

    seconds = draw.uniform(1.5, 40) * takes(1)
    first = first_steps(fields, seconds)
    assert takes(first) <= seconds * (1 + 1e-9) < takes(first + 1)
    assert first_steps(fields, 0.99 * takes(1)) == 0


def test_no_rung_is_longer_than_a_run_that_tables_report():
    assert first_steps([Cost(8, 1, 0.001, 0.0, most_steps=100)], 10**6) == 25  # 25, 50, 100


def test_seconds_of_a_budget_are_read_or_refused_in_one_line():
    from vlmpeft.runtime.errors import UserError
    from vlmpeft.study.budget import read_seconds

    assert [read_seconds(text) for text in ("90s", "30m", "2h", "0.5h")] == [90, 1800, 7200, 1800]
    for text in ("2", "h", "0h", "-1h", "2 hours", "1e3s", ""):
        with pytest.raises(UserError, match="90s, 30m or 2h"):
            read_seconds(text)
