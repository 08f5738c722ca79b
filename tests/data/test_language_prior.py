import random
from collections import Counter

import pytest

from vlmpeft.data.batches.dataset import scored_items
from vlmpeft.data.conversation import Conversation, Message
from vlmpeft.data.language_prior import language_prior


def _items(rows):
    """(question, kind, answer) as scored items."""
    return scored_items(
        [
            Conversation(
                str(n), (Message("user", (q,)), Message("assistant", (a,))), extra={"kind": kind}
            )
            for n, (q, kind, a) in enumerate(rows)
        ]
    )


def test_a_known_question_gets_its_own_commonest_answer_and_a_new_one_that_of_its_kind():
    train = _items(
        [("how many?", "count", "2")] * 3
        + [("how many?", "count", "1")]
        + [("how many red ones?", "count", "0")] * 5
        + [("where?", "place", "left")]
    )
    scored = [
        ("how many?", "count", "2"),
        ("how many?", "count", "1"),
        ("how many blue ones?", "count", "0"),
        ("where?", "place", "right"),
        ("why?", "reason", "so"),
    ]
    assert language_prior(train, _items(scored)) == 2 / 5


def test_no_answer_by_question_alone_does_better_on_what_it_was_taken_from():
    """Brute force: over its own training data the prior is the best function of the question."""
    rng = random.Random(0)
    rows = [(rng.choice("abc"), "k", rng.choice("xyz")) for _ in range(60)]
    best = sum(
        Counter(a for q, _, a in rows if q == question).most_common(1)[0][1] for question in "abc"
    )
    assert language_prior(_items(rows), _items(rows)) == pytest.approx(best / 60)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no items"):
        language_prior([], [])
