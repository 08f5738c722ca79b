"""BLEU, ROUGE-L and CIDEr-D against published examples and coco-caption."""

import pytest

from vlmpeft.evaluation.metrics import Answer, Bleu, CiderD, RougeL
from vlmpeft.runtime.errors import UserError

CAPTIONS = [
    (
        "a man rides a red bicycle down the street",
        ("a man riding a bicycle down a street", "the man rides a red bicycle down the street"),
    ),
    (
        "two dogs play in the deep snow",
        (
            "two dogs are playing in the snow",
            "a pair of dogs play in the deep snow",
            "dogs",
        ),
    ),
    ("the street is empty", ("the street is empty at night",)),
]
# BleuScorer(n=4).compute_score(option="closest") of pycocoevalcap 1.2 on CAPTIONS
COCO_BLEU = [0.9048374179, 0.9048374179, 0.8595179587, 0.8280304549]

# (answer, references, score) of CiderScorer(n=4, sigma=6.0) of pycocoevalcap 1.2 over these items
COCO_CIDER = [
    (
        "a man rides a red bicycle down the street",
        (
            "a man riding a bicycle down a street",
            "a man on a red bicycle in the street",
            "someone rides a bike",
            "the man rides a red bicycle down the street",
            "a cyclist in traffic",
        ),
        3.0106587527,
    ),
    (
        "two dogs play in the snow",
        ("two dogs are playing in the snow", "a pair of dogs play in deep snow"),
        2.9967148077,
    ),
    ("a cat", ("a cat sleeps on a sofa",), 2.3126018221),
    (
        "a plate of food food food food on a table",
        (
            "a plate of food on a wooden table",
            "food on a plate",
            "a table with a plate of food",
        ),
        2.5205280008,
    ),
    (
        "the street is empty at night",
        (
            "an empty street at night",
            "a dark street without cars at night",
            "the street is empty",
            "night falls on the city",
        ),
        2.8057209204,
    ),
    (
        "a bus",
        (
            "two dogs run",
            "a red bus parked beside the road",
            "the bus stops",
            "passengers leave a bus",
            "a bus at a stop",
        ),
        1.5599462026,
    ),
    ("a man and two dogs on the street", ("a man walks two dogs on the street",), 4.9671453365),
    ("", ("a sofa",), 0.0),
]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_corpus_bleu_is_coco_caption_s(n):
    metric = Bleu(n_gram=n)
    for answer, references in CAPTIONS:
        metric.update([Answer(answer, references)])
    assert metric.compute().item() == pytest.approx(COCO_BLEU[n - 1], abs=1e-6)


def test_bleu_clips_counts_as_in_the_paper():
    """Papineni et al. 2002, section 2.1, example 2: seven times "the" has a precision of 2/7."""
    metric = Bleu(n_gram=1)
    references = ("the cat is on the mat", "there is a cat on the mat")
    metric.update([Answer("the the the the the the the", references)])
    assert metric.compute().item() == pytest.approx(2 / 7)


def test_the_headline_is_not_the_mean_of_the_items():
    metric = Bleu()
    metric.update([Answer(answer, references) for answer, references in CAPTIONS])
    items = [metric.score_item(Answer(answer, references)) for answer, references in CAPTIONS]
    assert metric.compute().item() != pytest.approx(sum(items) / 3, abs=1e-3)


def test_smoothing_of_one_item_adds_one_above_single_words():
    """By hand: "red nut" against "red gear" has 1/2 words and (0 + 1) / (1 + 1) pairs, no longer ones."""
    assert Bleu().score("red nut", "red gear") == pytest.approx((1 / 2 * 1 / 2) ** (1 / 4))
    assert Bleu().score("red", "red") == pytest.approx(1)
    assert Bleu().score("blue", "red") == 0
    assert Bleu().score("", "red") == 0


def test_a_truncated_caption_is_an_empty_one_for_bleu():
    whole, cut, empty = Bleu(n_gram=1), Bleu(n_gram=1), Bleu(n_gram=1)
    first = Answer("a cat", ("a cat",))
    whole.update([first, Answer("a dog", ("a dog",))])
    cut.update([first, Answer("a dog", ("a dog",), finished=False)])
    empty.update([first, Answer("", ("a dog",))])
    assert cut.compute() == empty.compute() < whole.compute()
    assert Bleu().score_item(Answer("a dog", ("a dog",), finished=False)) == 0


@pytest.mark.parametrize(
    ("generated", "f1"),
    [
        ("police kill the gunman", 3 / 4),
        ("the gunman kill police", 2 / 4),
        ("Police killed the gunman.", 1.0),
        ("", 0.0),
        ("!!!", 0.0),
    ],
)
def test_rouge_l_is_lin_s(generated, f1):
    """Lin 2004, section 3.1: S2 and S3 against S1, "police killed the gunman"."""
    assert RougeL().score(generated, "police killed the gunman") == pytest.approx(f1)


def test_rouge_l_reads_other_scripts_and_takes_the_best_reference():
    answer = Answer(
        "\u043a\u0440\u0430\u0441\u043d\u044b\u0439",
        ("red", "\u041a\u0440\u0430\u0441\u043d\u044b\u0439!"),
    )
    assert RougeL().score_item(answer) == 1
    cut = Answer("red", ("red",), finished=False)
    assert RougeL().score_item(cut) == 0


def cider():
    metric = CiderD()
    metric.prepare([references for _, references, _ in COCO_CIDER])
    return metric


def test_cider_d_is_coco_caption_s():
    metric = cider()
    for answer, references, score in COCO_CIDER:
        assert metric.score_item(Answer(answer, references)) == pytest.approx(score, abs=1e-8)
    metric.update([Answer(answer, references) for answer, references, _ in COCO_CIDER])
    assert metric.compute().item() == pytest.approx(2.5216644804, abs=1e-8)


def test_cider_d_knows_no_case_and_no_punctuation():
    answer, references, score = COCO_CIDER[1]
    spelled = f"{answer.title()}!"
    assert cider().score_item(Answer(spelled, references)) == pytest.approx(score, abs=1e-8)


def test_cider_d_of_an_unfinished_or_empty_caption_is_0():
    answer, references, _ = COCO_CIDER[0]
    assert cider().score_item(Answer(answer, references, finished=False)) == 0
    assert cider().score_item(Answer("", references)) == 0


def test_cider_d_survives_cloning_and_asks_for_prepare():
    answer, references, score = COCO_CIDER[0]
    clone = cider().clone()
    assert clone.score_item(Answer(answer, references)) == pytest.approx(score, abs=1e-8)
    with pytest.raises(UserError, match="prepare"):
        CiderD().score_item(Answer(answer, references))


def test_cider_d_of_a_single_item_is_0():
    """Every n-gram is in every document then: log(1 / 1) = 0, as in coco-caption."""
    metric = CiderD()
    metric.prepare([("a cat",)])
    assert metric.score("a cat", "a cat") == 0
