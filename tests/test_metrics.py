import pytest

from vlmpeft.errors import UserError
from vlmpeft.metrics import ExactMatch, TextMetric, TokenF1
from vlmpeft.module import build_metric


class Shouts(TextMetric):
    """A user's own metric."""

    name = "shouts"

    def score(self, generated, expected):
        return float(generated.isupper())


def test_exact_match_ignores_white_space_at_the_ends_only():
    score = ExactMatch().score
    assert score(" red\n", "red") == 1
    assert score("Red", "red") == 0
    assert score("red  gear", "red gear") == 0


@pytest.mark.parametrize(
    ("generated", "expected", "f1"),
    [
        ("The Norman Conquest", "norman conquest", 1.0),
        ("a red gear", "red nut", 0.5),
        ("red red", "red", 2 / 3),
        ("", "red", 0.0),
        ("the", "a", 1.0),
        ("blue", "red", 0.0),
    ],
)
def test_token_f1_is_squad_s(generated, expected, f1):
    """Values follow SQuAD's official script: overlap of bags of normalised words."""
    assert TokenF1().score(generated, expected) == pytest.approx(f1)


def test_a_truncated_answer_counts_as_wrong():
    assert ExactMatch().score_item("red", "red", finished=True) == 1
    assert ExactMatch().score_item("red", "red", finished=False) == 0


def test_the_mean_is_over_items():
    metric = ExactMatch()
    metric.update([1.0, 0.0])
    metric.update([1.0])
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_own_metric_by_dotted_path():
    assert build_metric(f"{Shouts.__module__}.Shouts").score("YES", "") == 1


def test_unknown_metric_gets_a_suggestion():
    with pytest.raises(UserError, match="Did you mean ExactMatch"):
        build_metric("ExactMach")
    with pytest.raises(UserError, match=r"not a vlmpeft\.TextMetric"):
        build_metric("json.JSONDecoder")
