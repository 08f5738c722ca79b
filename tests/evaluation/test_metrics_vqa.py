"""Answers to visual questions against the official scripts."""

import random

import pytest

from vlmpeft.evaluation.metrics import Anls, Answer, NumericError, RelaxedAccuracy, VqaAccuracy
from vlmpeft.evaluation.metrics.vqa import edit_distance, last_number, normalise
from vlmpeft.runtime.errors import UserError

# pix2struct/metrics_test.py, test_pix2struct_metrics: 47.5 % ANLS, 62.5 % relaxed accuracy
PIX2STRUCT = [
    ("abc", "abc"),
    ("abc", "Abc"),
    ("Abc", "abc"),
    ("100%", "96%"),
    ("100%", "94%"),
    ("100%", "0.96"),
    ("100%", "0.94"),
    ("Don't", "Won't"),
]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The two  dogs, dont they?", "2 dogs don't they"),
        ("1,000 people", "1000 people"),
        ("left-hand side", "left hand side"),
        ("white/black", "white black"),
        ("red , blue", "red blue"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        ("2:50 PM", "2:50 pm"),
        ("He'dve left", "he'd've left"),
        ("somebody'd", "somebodyd"),
        ("None.", "0"),
        ("a", ""),
        ("", ""),
    ],
)
def test_normalisation_is_the_official_script_s(text, normal):
    """Output of processPunctuation and processDigitArticle in GT-Vision-Lab/VQA vqaEval.py (a013f00)."""
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("generated", "references", "accuracy"),
    [
        ("2", ["2"] * 2 + ["3"] * 8, 0.6),
        ("two", ["2"] * 3 + ["3"] * 7, 0.9),
        ("yes", ["Yes"] * 4 + ["no"] * 6, 1.0),
        ("red", ["red"] + ["blue"] * 9, 0.3),
        ("the red", ["red"] * 5 + ["blue"] * 5, 1.0),
        ("dont know", ["don't know", "3"] + ["x"] * 8, 0.3),
        ("green", ["red"] * 10, 0.0),
    ],
)
def test_vqa_accuracy_is_the_official_script_s(generated, references, accuracy):
    """evalQA of vqaEval.py (a013f00), run on these answers."""
    score = VqaAccuracy().score_item(Answer(generated, tuple(references)))
    assert score == pytest.approx(accuracy)


def test_vqa_accuracy_with_fewer_annotators():
    """By hand: of two or three answers all that are left are enough, of four any three."""
    metric = VqaAccuracy()
    assert metric.score_item(Answer("The red.", ("red",))) == 1
    assert metric.score_item(Answer("red", ("red",) * 3)) == 1
    assert metric.score_item(Answer("red", ("red",) * 4)) == 1
    assert metric.score_item(Answer("red", ("red",) * 4, finished=False)) == 0


def test_anls_and_relaxed_accuracy_are_pix2struct_s():
    answers = [Answer(generated, (expected,)) for generated, expected in PIX2STRUCT]
    for metric, share in ((Anls(), 0.475), (RelaxedAccuracy(), 0.625)):
        metric.update(answers)
        assert metric.compute().item() == pytest.approx(share)


def test_anls_is_zero_from_the_threshold_on():
    """Biten et al. 2019, eq. 1: s = 1 - NL below tau, 0 at tau."""
    assert Anls().score("abcd", "abcx") == pytest.approx(0.75)
    assert Anls().score("ab", "ax") == 0
    assert Anls(threshold=1).score("ab", "ax") == pytest.approx(0.5)
    assert Anls(threshold=1).score("ab", "xy") == 0


@pytest.mark.parametrize(
    ("generated", "expected", "similarity"),
    [
        ("  Red \n GEAR", "red gear", 1.0),
        ("", "", 1.0),
        ("", "red", 0.0),
        ("\u00e9t\u00e9", "ete", 0.0),
        ("red" * 4_000, "red", 0.0),
        ("red" * 4_000, "red" * 4_000 + "der", 1 - 3 / 12_003),
    ],
)
def test_anls_of_edge_cases(generated, expected, similarity):
    assert Anls().score(generated, expected) == pytest.approx(similarity)


def table_distance(a, b):
    """Wagner and Fischer's table, the definition."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def test_edit_distance_is_the_table_s():
    rng = random.Random(0)
    for _ in range(500):
        a, b = ("".join(rng.choices("abc ", k=rng.randint(0, 12))) for _ in range(2))
        assert edit_distance(a, b) == table_distance(a, b), (a, b)


@pytest.mark.parametrize(
    ("generated", "expected", "right"),
    [
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-96", "-100", 1),
        ("5%", "0.05", 1),
        ("0.0", "0", 0),
        ("0", "0", 1),
        (" Blue\n", "blue", 1),
        ("", "blue", 0),
        ("nan", "NaN", 1),
        ("100 people", "100", 0),
    ],
)
def test_relaxed_accuracy_is_within_five_percent(generated, expected, right):
    assert RelaxedAccuracy().score(generated, expected) == right


def test_relaxed_accuracy_with_another_tolerance_and_several_references():
    assert RelaxedAccuracy(tolerance=0.1).score("91", "100") == 1
    assert RelaxedAccuracy().score_item(Answer("50", ("100", "51"))) == 1
    assert RelaxedAccuracy().score_item(Answer("50", ("50",), finished=False)) == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("between 3 and -4.5 m", -4.5),
        ("1,250,000.5", 1_250_000.5),
        ("3,4", 4),
        ("2010-2020", 2020),
        (".5", 0.5),
        ("about 12.", 12),
        ("\u22127", -7),
        ("6e-2", 0.06),
        ("1e999", None),
        ("none", None),
        ("", None),
        ("9" * 400, None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == number


def test_numeric_error_is_the_mean_distance_and_counts_missing_numbers():
    """By hand: 1, 0, and the farthest of -2, 3, 10 from 3."""
    metric = NumericError()
    metric.prepare([("10",), ("-2",), ("3",)])
    answers = [
        Answer("I count 9", ("10",)),
        Answer("-2.0", ("-2",)),
        Answer("no idea", ("3",)),
    ]
    assert [metric.score_item(answer) for answer in answers] == [1, 0, 7]
    metric.update(answers)
    computed = metric.compute()
    assert computed[""].item() == pytest.approx(8 / 3)
    assert computed["missing"].item() == pytest.approx(1 / 3)


def test_a_truncated_number_is_a_missing_one():
    metric = NumericError()
    metric.prepare([("5",), ("5",)])
    cut = Answer("5", ("5",), finished=False)
    assert metric.score_item(cut) == 5
    metric.update([cut, Answer("5", ("5",))])
    assert metric.compute()["missing"] == 0.5


def test_the_nearest_reference_counts_for_a_number():
    metric = NumericError()
    metric.prepare([("4", "8"), ("0",)])
    assert metric.score_item(Answer("7", ("4", "8"))) == 1


def test_a_reference_without_a_number_is_named():
    with pytest.raises(UserError, match="'a few' has no number"):
        NumericError().prepare([("3",), ("a few",)])
