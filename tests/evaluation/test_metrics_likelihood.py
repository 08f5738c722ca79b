"""Perplexity, choices by likelihood, and what chance is worth."""

import math

import pytest

from vlmpeft.evaluation.metrics import Answer, ChanceCorrected, ChoiceAccuracy, Perplexity, TokenF1
from vlmpeft.evaluation.metrics.chance import best_constant
from vlmpeft.runtime.errors import UserError


def choice(log_probabilities, reference="b", choices=("a", "b"), tokens=(1, 1), **more):
    return Answer(
        "",
        (reference,),
        choices=choices,
        choice_log_probabilities=log_probabilities,
        choice_tokens=tokens,
        **more,
    )


def test_perplexity_of_a_uniform_guess_is_the_number_of_tokens_to_guess_from():
    metric = Perplexity()
    metric.update([Answer("", ("x",), loss=n * math.log(50), tokens=n) for n in (1, 4, 20)])
    assert metric.compute().item() == pytest.approx(50)


def test_perplexity_weighs_tokens_not_items():
    metric = Perplexity()
    answers = [Answer("", ("x",), loss=3.0, tokens=1), Answer("", ("x",), loss=0.0, tokens=2)]
    metric.update(answers)
    assert metric.compute().item() == pytest.approx(math.e)
    assert metric.score_item(answers[0]) == pytest.approx(math.exp(3))
    assert metric.score_item(Answer("", ("x",), loss=4 * math.log(7), tokens=4)) == pytest.approx(7)


def test_perplexity_does_not_mind_truncation_nothing_or_overflow():
    metric = Perplexity()
    assert metric.score_item(Answer("", ("x",), loss=1.0, tokens=1, finished=False)) == math.e
    assert metric.score_item(Answer("", ("",))) == 1
    assert metric.score_item(Answer("", ("x",), loss=1e6, tokens=1)) == math.inf
    assert not metric.higher_is_better


def test_the_most_probable_choice_is_the_answer():
    metric = ChoiceAccuracy()
    metric.update(
        [choice((-2.0, -1.0)), choice((-1.0, -2.0)), choice((-9.0, -1.0), finished=False)]
    )
    assert metric.compute().item() == pytest.approx(2 / 3)
    assert metric.needs_choices


@pytest.mark.parametrize(("normalize", "right"), [("none", 0), ("tokens", 1), ("characters", 0)])
def test_normalisation_decides_between_short_and_long(normalize, right):
    """Per choice: -2 and -3; per token -2 and -1; per character -2/4 and -3/5."""
    answer = choice((-2.0, -3.0), "b c d", choices=("aaaa", "b c d"), tokens=(1, 3))
    assert ChoiceAccuracy(normalize=normalize).score_item(answer) == right


def test_characters_prefer_a_longer_choice():
    answer = choice((-2.0, -3.0), "long one", choices=("a", "long one"))
    assert ChoiceAccuracy().score_item(answer) == 0
    assert ChoiceAccuracy(normalize="characters").score_item(answer) == 1


def test_several_references_may_be_right():
    answer = Answer("", ("a", "c"), choices=("a", "b", "c"), choice_log_probabilities=(-3, -2, -1))
    assert ChoiceAccuracy().score_item(answer) == 1


def test_items_without_the_right_choice_are_named():
    with pytest.raises(UserError, match="'red' has no choices"):
        ChoiceAccuracy().score_item(Answer("red", ("red",)))
    with pytest.raises(UserError, match=r"'green' is none of the choices \['a', 'b'\]"):
        ChoiceAccuracy().score_item(choice((-1.0, -2.0), "green"))


REFERENCES = [("yes",), ("yes",), ("yes",), ("no",)]


def corrected(answers, **init_args):
    metric = ChanceCorrected(**init_args)
    metric.prepare(REFERENCES)
    metric.update([Answer(a, r) for a, r in zip(answers, REFERENCES, strict=True)])
    return metric.compute().item()


def test_the_best_constant_need_not_be_the_most_frequent_reference():
    """`red` is right twice of six; `blue car` once, and half of it three times."""
    blue = [(f"blue {thing}",) for thing in ("car", "bus", "tram", "bike")]
    level, constant = best_constant(TokenF1(), [("red",), ("red",), *blue])
    assert (level, constant) == (pytest.approx((1 + 3 * 0.5) / 6), "blue car")


def test_the_majority_answer_is_worth_0_and_the_right_one_1():
    """By hand: chance is 3/4, so 2 of 4 right is (1/2 - 3/4) / (1/4) = -1."""
    assert corrected(["yes"] * 4) == pytest.approx(0)
    assert corrected(["yes", "yes", "yes", "no"]) == pytest.approx(1)
    assert corrected(["yes", "yes", "no", "yes"]) == pytest.approx(-1)


def test_majority_is_by_the_inner_metric():
    """By hand: "x y" has an F1 of 1, 2/3 and 2/3 with the three; "x" of 2/3, 1 and 0."""
    metric = ChanceCorrected(metric="TokenF1")
    metric.prepare([("x y",), ("x",), ("y",)])
    assert metric.level == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert metric.name == "token_f1_chance_corrected"


def test_several_references_count_for_the_majority():
    metric = ChanceCorrected()
    metric.prepare([("yes", "y"), ("no", "y"), ("maybe",)])
    assert metric.level == pytest.approx(2 / 3)


def test_a_given_chance_and_an_unfinished_answer():
    metric = ChanceCorrected(chance=0.5)
    assert metric.score_item(Answer("yes", ("yes",))) == 1
    assert metric.score_item(Answer("yes", ("yes",), finished=False)) == -1


def test_chance_of_choices_is_the_item_s_own():
    """By hand: of 4 choices, wrong is (0 - 1/4) / (3/4) = -1/3."""
    metric = ChanceCorrected(metric="ChoiceAccuracy", chance="choices")
    assert metric.needs_choices
    four = {"choices": tuple("abcd"), "tokens": (1,) * 4}
    assert metric.score_item(choice((-9.0, -1.0, -9.0, -9.0), **four)) == 1
    assert metric.score_item(choice((-1.0, -2.0, -9.0, -9.0), **four)) == pytest.approx(-1 / 3)
    with pytest.raises(UserError, match="chance needs 2"):
        metric.score_item(choice((-1.0,), choices=("b",), tokens=(1,)))


def test_majority_of_choices_finds_the_most_frequent_one():
    metric = ChanceCorrected(metric="ChoiceAccuracy")
    metric.prepare(REFERENCES)
    assert metric.level == pytest.approx(3 / 4)


def test_a_split_that_one_answer_solves_is_refused():
    with pytest.raises(UserError, match="constant answer 'red' is right everywhere"):
        ChanceCorrected().prepare([("red",), ("red", "blue")])
    with pytest.raises(UserError, match="below 1"):
        ChanceCorrected(chance=1.0)
    with pytest.raises(UserError, match="prepare"):
        ChanceCorrected().score("red", "red")


def test_identity_holds_the_inner_metric_s():
    one = ChanceCorrected(metric={"class_path": "ExactMatch", "init_args": {"ignore_case": True}})
    other = ChanceCorrected(metric="ExactMatch")
    assert one.identity()["init_args"]["metric"]["init_args"]["ignore_case"] is True
    assert one.identity() != other.identity()
