"""Which candidate of a search is chosen, and what a record says of it."""

from vlmpeft.study.choosing import Tried, choose, search_record
from vlmpeft.study.planned_run import Candidate


def tried(rate, scores, losses):
    candidate = Candidate(f"learning_rate={rate}", {"learning_rate": rate})
    return Tried(candidate, scores, losses)


def test_best_mean_score_wins_and_of_equals_the_lower_loss_and_then_the_first():
    a, b = tried(1e-3, [0.5, 0.7], [1, 1]), tried(3e-3, [0.9, 0.2], [0, 0])
    assert choose([b, a]) == a
    c = tried(1e-2, [0.6, 0.6], [0.5, 0.5])
    assert choose([a, c]) == c
    assert choose([a, tried(2e-3, [0.7, 0.5], [1, 1])]) == a


def test_candidates_that_failed_or_gave_nan_are_not_chosen():
    good = tried(1e-3, [0.0], [9.0])
    assert choose([tried(1.0, [], []), tried(0.5, [0.9], [float("nan")]), good]) == good
    assert choose([tried(1.0, [], [])]) is None


def test_record_says_what_was_tried_and_whether_the_best_is_at_the_edge():
    all_ = [tried(r, [s], [1.0]) for r, s in ((1e-3, 0.1), (3e-3, 0.2), (1e-2, 0.3))]
    record = search_record(all_, choose(all_), "val")
    assert record["tried"] == 3
    assert record["chosen"] == {"learning_rate": 1e-2}
    assert record["at_edge"] == ["learning_rate"]
    assert [c["scores"] for c in record["candidates"]] == [[0.1], [0.2], [0.3]]
    inner = [tried(r, [s], [1.0]) for r, s in ((1e-3, 0.1), (3e-3, 0.4), (1e-2, 0.3))]
    assert search_record(inner, choose(inner), "val")["at_edge"] == []
