"""Laws that every metric keeps; the words metrics; building from a config."""

import copy
import math

import pytest
import torch

from vlmpeft.evaluation.metrics import (
    Answer,
    Contains,
    ExactMatch,
    TextMetric,
    TokenF1,
    build_metric,
)
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.registry import METRICS

SCHEMA = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}, "n": {}}}
SPECS = {name: name for name in METRICS} | {
    "JsonFields": {"class_path": "JsonFields", "init_args": {"schema": SCHEMA}},
    "ChanceCorrected": {"class_path": "ChanceCorrected", "init_args": {"metric": "TokenF1"}},
}
REFERENCES = {
    "Bleu": [("a red gear on wood",), ("blue gear", "gear"), ("two red gears on wood",)],
    "NumericError": [("3",), ("7", "8"), ("-1",)],
    "JsonFields": [('{"color": "red"}',), ('{"n": 1}', '{"n": 2}'), ("{}",)],
}
NASTY = {
    "empty": "",
    "blank": " \n\t",
    "nul": "\x00",
    "open brace": "{",
    "open bracket": "[1,2",
    "deep brackets": "[" * 10_000,
    "deep objects": '{"n":' * 900 + "1" + "}" * 900,
    "closed brackets": "[" * 500 + "]" * 500,
    "NaN": "NaN",
    "infinite": "-inf",
    "overflow": "1e999",
    "long integer": "9" * 5_000,
    "huge in JSON": '{"n": ' + "9" * 4_000 + ', "color": 1e999}',
    "unhashable enum": '{"color": [{"a": [1]}], "n": null}',
    "not an object": '"red"',
    "long words": "red gear " * 1_200,
    "long word": "x" * 10_000,
    "percent": "%",
    "commas": "1,,,2,-.",
    "emoji": "\U0001f9e1\u200d\U0001f525",
    "lone surrogate": "\ud800 red \udfff",
    "other digits": "\u0663\u0664",
    "regex": "(.*)[\\",
}


class Shouts(TextMetric):
    """A user's own metric."""

    name = "shouts"

    def score(self, generated, expected):
        return float(generated.isupper())


class Tuned(Shouts):
    def __init__(self, power, *, base: float = 2.0):
        super().__init__()


class Nameless(TextMetric):
    def score(self, generated, expected):
        return 0.0


class Distance(TextMetric):
    name = "distance"
    higher_is_better = False

    def score(self, generated, expected):
        return float(abs(len(generated) - len(expected)))


def prepared(name):
    references = REFERENCES.get(name, [("red",), ("blue gear", "gear"), ("red",)])
    metric = build_metric(SPECS[name])
    metric.prepare(references)
    return metric, references


def answers_for(references, texts):
    return [
        Answer(
            text,
            known,
            loss=1.5,
            tokens=3,
            choices=(*known, "other"),
            choice_log_probabilities=(-1.0,) * len(known) + (-2.0,),
            choice_tokens=(1,) * (len(known) + 1),
        )
        for text, known in zip(texts, references, strict=True)
    ]


def values(metric):
    computed = metric.compute()
    named = computed if isinstance(computed, dict) else {"": computed}
    return {name: value.item() for name, value in named.items()}


def merge(metric, other):
    """What reducing over two ranks does to states with dist_reduce_fx="sum"."""
    for state in metric._defaults:
        assert metric._reductions[state] is torch.sum or "sum" in str(metric._reductions[state])
        setattr(metric, state, getattr(metric, state) + getattr(other, state))
    metric._computed = None
    return metric


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
@pytest.mark.parametrize("name", METRICS)
def test_no_generated_text_raises(name, text):
    metric, references = prepared(name)
    answers = answers_for(references, [text] * len(references))
    metric.update(answers)
    headline = values(metric)[""]
    assert not math.isnan(headline)
    assert all(isinstance(metric.score_item(answer), float) for answer in answers)


@pytest.mark.parametrize("name", METRICS)
def test_two_ranks_sum_to_one_and_groups_are_clones(name):
    whole, references = prepared(name)
    groups = [whole.clone(), copy.deepcopy(whole)]
    answers = answers_for(references, [references[0][0], references[2][0], "1"])
    whole.update(answers)
    for group, part in zip(groups, (answers[:1], answers[1:]), strict=True):
        group.update(part)
    assert whole.count == sum(group.count for group in groups)
    assert values(merge(*groups)) == pytest.approx(values(whole))
    assert values(whole)[""] != 0


@pytest.mark.parametrize("name", METRICS)
def test_reset_forgets_answers_and_keeps_prepare(name):
    metric, references = prepared(name)
    answers = answers_for(references, [references[0][0], "", references[2][0]])
    metric.update(answers)
    before = values(metric)
    metric.reset()
    assert metric.count == 0
    metric.update(answers)
    assert values(metric) == before


@pytest.mark.parametrize("name", METRICS)
def test_the_right_answer_beats_a_wrong_one(name):
    metric, references = prepared(name)
    right, wrong = (
        Answer(text, references[0], choices=choices, choice_log_probabilities=(-1, -2))
        for text, choices in (
            (references[0][0], (references[0][0], "9")),
            ("9 x", ("9", references[0][0])),
        )
    )
    if name in ("Perplexity", "CiderD"):  # blind to the text; a word in half of the items
        return
    scores = metric.score_item(right), metric.score_item(wrong)
    assert scores[0] > scores[1] if metric.higher_is_better else scores[0] < scores[1]


def test_exact_match_ignores_white_space_at_the_ends_only():
    score = ExactMatch().score
    assert score(" red\n", "red") == 1
    assert score("Red", "red") == 0
    assert score("red  gear", "red gear") == 0


@pytest.mark.parametrize(
    ("case", "punctuation", "generated", "expected", "same"),
    [
        (True, False, "STRASSE", "stra\u00dfe", 1),
        (True, False, "Red.", "red", 0),
        (False, True, "\u201cred\u201d, gear!", "red gear", 1),
        (False, True, "red - gear", "red gear", 1),
        (False, True, "Red.", "red", 0),
        (True, True, "Red.", "red", 1),
        (False, True, "...", "", 1),
    ],
)
def test_exact_match_may_ignore_case_and_punctuation(case, punctuation, generated, expected, same):
    metric = ExactMatch(ignore_case=case, ignore_punctuation=punctuation)
    assert metric.score(generated, expected) == same


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


@pytest.mark.parametrize(
    ("generated", "expected", "contained"),
    [
        ("It is a Red\n gear.", "red gear", 1),
        ("redder", "red", 0),
        ("infrared", "red", 0),
        ("costs $5 (net)", "$5", 1),
        ("c++", "c++", 1),
        ("\u00c9t\u00e9 2020", "\u00e9t\u00e9", 1),
        ("anything", "", 0),
        (" ", "", 1),
        ("", "red", 0),
    ],
)
def test_contains_takes_whole_words(generated, expected, contained):
    assert Contains().score(generated, expected) == contained


def test_the_best_reference_counts():
    answer = Answer("red gear", ("blue", "red nut", "red gear"))
    assert TokenF1().score_item(answer) == 1
    assert Distance().score_item(Answer("abc", ("a", "abcd"))) == 1


def test_a_truncated_answer_counts_as_wrong():
    assert ExactMatch().score_item(Answer("red", ("red",))) == 1
    assert ExactMatch().score_item(Answer("red", ("red",), finished=False)) == 0
    assert Distance().score_item(Answer("red", ("red",), finished=False)) == 3


def test_the_mean_is_over_items():
    metric = ExactMatch()
    metric.update([Answer("red", ("red",)), Answer("blue", ("red",))])
    metric.update([Answer("red", ("blue", "red"))])
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_own_metric_by_dotted_path():
    path = f"{Shouts.__module__}.Shouts"
    metric = build_metric(path)
    metric.update([Answer("YES", ("",)), Answer("no", ("",))])
    assert values(metric) == {"": 0.5}
    assert metric.identity() == {"class_path": path, "init_args": {}}


def test_identity_holds_every_argument_defaults_too():
    tuned = Tuned(3)
    assert tuned.identity()["init_args"] == {"power": 3, "base": 2.0}
    assert tuned.clone().identity() == tuned.identity()
    same = {"ignore_case": True, "ignore_punctuation": False}
    assert ExactMatch(ignore_case=True).identity() == {
        "class_path": "vlmpeft.evaluation.metrics.text.ExactMatch",
        "init_args": same,
    }


def test_building_by_class_path_passes_arguments():
    spec = {"class_path": "ExactMatch", "init_args": {"ignore_case": True}}
    assert build_metric(spec).score("Red", "red") == 1
    assert (
        build_metric({"class_path": "vlmpeft.evaluation.metrics.text.ExactMatch"}).score(
            "Red", "red"
        )
        == 0
    )
    assert (
        build_metric({"class_path": "Anls", "init_args": {"threshold": 1}}).score("ab", "ac") == 0.5
    )


def init(name, **init_args):
    return {"class_path": name, "init_args": init_args}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ExactMach", "Did you mean ExactMatch"),
        ("exact_match", "Did you mean ExactMatch"),
        ("json.JSONDecoder", r"not a vlmpeft\.TextMetric subclass"),
        ("vlmpeft.evaluation.metrics.Nothing", "cannot be imported"),
        ({"class": "ExactMatch"}, "neither a name nor"),
        (3, "neither a name nor"),
        ({"class_path": "ExactMatch", "initargs": {}}, "Did you mean init_args"),
        ({"class_path": "ExactMatch", "init_args": [1]}, "not a mapping"),
        (init("ExactMatch", ignore_cas=True), "Did you mean ignore_case"),
        (init("TokenF1", case=True), "TokenF1 has no argument 'case'"),
        (init("ExactMatch", ignore_case="perhaps"), "ignore_case"),
        (init("Anls", threshold="half"), "threshold"),
        (init("Anls", threshold=0), "Anls threshold=0"),
        (init("RelaxedAccuracy", tolerance=-1), "at least 0"),
        (init("Bleu", n_gram=0), "at least 1"),
        (init("Bleu", n_gram=2.5), "n_gram"),
        (init("ChoiceAccuracy", normalize="token"), "normalize"),
        (init("ChanceCorrected", metric="Perplexity"), "perplexity is an error"),
        (init("ChanceCorrected", metric="Exact"), "ExactMatch"),
        ("JsonFields", "schema"),
        (f"{__name__}.Nameless", "no `name`"),
        ("vlmpeft.evaluation.metrics.TextMetric", "abstract"),
    ],
)
def test_a_wrong_metric_says_what_to_do(spec, message):
    if spec == f"{__name__}.Nameless":
        spec = f"{Nameless.__module__}.Nameless"
    with pytest.raises(UserError, match=message):
        build_metric(spec)
