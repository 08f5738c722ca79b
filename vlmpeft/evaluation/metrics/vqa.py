"""Metrics of short answers to questions about pictures, documents and charts."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from vlmpeft.evaluation.metrics.base import Answer, TextMetric
from vlmpeft.runtime.errors import UserError

# every contraction the script mends: written with one apostrophe missing, any one, it gets it back
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
you'll you're you've
"""
_MENDED = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTIONS.split()
    for at, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # the script's own slip, kept for the same figures
_NUMBERS = "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


class VqaAccuracy(TextMetric):
    """min(1, n / 3) for n annotators who gave the answer, averaged over leave-one-out subsets of them.

    Antol et al. 2015 (arXiv:1505.00468), and the official vqaEval.py, normalisation included. An item has
    10 references there; with 2 or 3, all of those left are enough, with one it is exact match. Unlike
    the script, which compares raw texts where all references agree, answers are always normalised.
    """

    name = "vqa_accuracy"

    def score(self, generated: str, expected: str) -> float:
        return float(normalise(generated) == normalise(expected))

    def score_item(self, answer: Answer) -> float:
        """The mean over subsets that leave one reference out."""
        if not answer.finished:
            return 0.0
        matches = [self.score(answer.generated, reference) for reference in answer.references]
        if len(matches) == 1:
            return matches[0]
        enough = min(3, len(matches) - 1)
        return sum(min(1.0, (sum(matches) - own) / enough) for own in matches) / len(matches)


class Anls(TextMetric):
    """Average normalised Levenshtein similarity (Biten et al. 2019, eq. 1): 1 - edits / longer length.

    Texts compare in lower case, stripped, white space collapsed. Of several references the best counts.

    Args:
        threshold: a share of edits of this much or more scores 0; 1 keeps every similarity.
    """

    name = "anls"

    def __init__(self, *, threshold: float = 0.5):
        if not 0 < threshold <= 1:
            raise UserError(f"Anls threshold={threshold}: above 0, at most 1")
        super().__init__()
        self.threshold = threshold

    def score(self, generated: str, expected: str) -> float:
        got, want = (" ".join(text.lower().split()) for text in (generated, expected))
        edits = edit_distance(got, want) / max(len(got), len(want), 1)
        return 1 - edits if edits < self.threshold else 0.0


class RelaxedAccuracy(TextMetric):
    """1 for a number within a share of the expected one, or for the same text whatever its case.

    ChartQA, Masry et al. 2022, section 5.1, as pix2struct's metrics.py computes it: `5%` is 0.05, and an
    expected 0 compares as text. Text is stripped, and `nan` and `inf` are words, not numbers.

    Args:
        tolerance: largest error of a number, as a share of the expected number.
    """

    name = "relaxed_accuracy"

    def __init__(self, *, tolerance: float = 0.05):
        if tolerance < 0:
            raise UserError(f"RelaxedAccuracy tolerance={tolerance}: at least 0")
        super().__init__()
        self.tolerance = tolerance

    def score(self, generated: str, expected: str) -> float:
        generated, expected = generated.strip(), expected.strip()
        got, want = _chart_number(generated), _chart_number(expected)
        if got is not None and want:
            return float(abs(got - want) / abs(want) <= self.tolerance)
        return float(generated.lower() == expected.lower())


class NumericError(TextMetric):
    """Mean distance of the last number in the answer from the expected number; lower is better.

    An answer without a number, or cut off, counts as the worst of the split's expected numbers: the one
    farthest from its own (0 where the split has a single one). So silence never beats a guess within the
    range. `numeric_error/missing` is the share of such answers. Numbers may have a sign, thousands commas,
    a decimal point and an exponent; of several references the nearest counts.
    """

    name = "numeric_error"
    higher_is_better = False
    missing: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("missing", torch.tensor(0), dist_reduce_fx="sum")
        self.lowest = self.highest = 0.0

    def prepare(self, references: Sequence[tuple[str, ...]]) -> None:
        numbers = {_expected_number(text) for texts in references for text in texts}
        if len(numbers) < 2:
            numbers.add(0.0)
        self.lowest, self.highest = min(numbers), max(numbers)

    def score(self, generated: str, expected: str) -> float:
        """The absolute error."""
        got, want = last_number(generated), _expected_number(expected)
        if got is None:
            return max(abs(want - self.lowest), abs(want - self.highest))
        return abs(got - want)

    def update(self, answers: Sequence[Answer]) -> None:
        super().update(answers)
        self.missing += sum(not a.finished or last_number(a.generated) is None for a in answers)

    def compute(self) -> dict[str, Tensor]:
        """The mean error and the share of answers without a number."""
        count = self.count.clamp(min=1)
        return {"": self.total / count, "missing": self.missing / count}


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance, a column of its table at a time in the bits of one integer (Hyyro 2003).

    >>> edit_distance("kitten", "sitting")
    3
    """
    if not a:
        return len(b)
    places: defaultdict[str, int] = defaultdict(int)
    for place, character in enumerate(a):
        places[character] |= 1 << place
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = every, 0, len(a)  # where the column rises and falls, its last entry
    for character in b:
        equal = places.get(character, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        right_up, right_down = down | ~(diagonal | up), up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        up, down = (right_down | ~(diagonal | right_up)) & every, right_up & diagonal & every
    return distance


def last_number(text: str) -> float | None:
    """The last number in a text.

    >>> last_number("between -3 and 1,250.5 m")
    1250.5
    """
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    number = float(found[-1].replace(",", "")) if found else math.nan
    return number if math.isfinite(number) else None


_NUMBER = re.compile(
    r"(?:(?<!\w)[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)


def _expected_number(text: str) -> float:
    number = last_number(text)
    if number is None:
        raise UserError(f"numeric_error: the reference {text[:80]!r} has no number")
    return number


def _chart_number(text: str) -> float | None:
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def normalise(text: str) -> str:
    """The text as the official VQA script has it before it compares (vqaEval.py, Antol et al. 2015).

    Its rules are on punctuation, number words, articles and contractions.

    >>> normalise("The two  dogs, dont they?")
    "2 dogs don't they"
    """
    words = _strip_punctuation(" ".join(text.split())).lower().split()
    digits = [_DIGITS.get(word, word) for word in words]
    return " ".join(_MENDED.get(word, word) for word in digits if word not in _ARTICLES)


def _strip_punctuation(text: str) -> str:
    """A mark goes where it touches a blank or the text has a number with a comma, else becomes a blank.

    Periods go unless a digit follows: the script's look-behind for a digit is a typing error, and has no
    effect there either.
    """
    has_thousands = re.search(r"\d,\d", text) is not None
    bare = text
    for mark in _PUNCTUATION:
        at_blank = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if at_blank or has_thousands else " ")
    return re.sub(r"\.(?!\d)", "", bare)
