"""Metrics of words: is the answer the expected text, how much of it is there."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

from vlmpeft.evaluation.metrics.base import TextMetric


class ExactMatch(TextMetric):
    """1 if the answers are the same text, up to white space at both ends.

    Args:
        ignore_case: `Red` is `red`.
        ignore_punctuation: drop every punctuation mark, and white space beyond one blank between words;
            `red.` is `red`, but `3.5` is also `35` and `-1` also `1`.
    """

    name = "exact_match"

    def __init__(self, *, ignore_case: bool = False, ignore_punctuation: bool = False):
        super().__init__()
        self.ignore_case, self.ignore_punctuation = ignore_case, ignore_punctuation

    def score(self, generated: str, expected: str) -> float:
        return float(self._normalise(generated) == self._normalise(expected))

    def _normalise(self, text: str) -> str:
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            text = " ".join("".join(c for c in text if not _is_punctuation(c)).split())
        return text.strip()


class TokenF1(TextMetric):
    """Harmonic mean of precision and recall over bags of words (SQuAD, Rajpurkar et al. 2016, section 6.1).

    Words are normalised as in SQuAD's official script: lower case, no punctuation, no articles.
    """

    name = "token_f1"

    def score(self, generated: str, expected: str) -> float:
        got, want = _squad_words(generated), _squad_words(expected)
        if not got or not want:
            return float(got == want)
        common = sum((Counter(got) & Counter(want)).values())
        return 2 * common / (len(got) + len(want))


class Contains(TextMetric):
    """1 if the expected text occurs in the answer as whole words, whatever the case and the white space.

    Lenient to models that answer in sentences, and to those that name every possibility: read it beside
    ExactMatch. An empty reference is contained in an empty answer alone.
    """

    name = "contains"

    def score(self, generated: str, expected: str) -> float:
        got, want = (" ".join(text.casefold().split()) for text in (generated, expected))
        if not want:
            return float(not got)
        return float(re.search(rf"(?<!\w){re.escape(want)}(?!\w)", got) is not None)


def _squad_words(text: str) -> list[str]:
    """The words of a text after SQuAD's normalisation.

    >>> _squad_words("The quick, brown fox.")
    ['quick', 'brown', 'fox']
    """
    bare = text.lower().translate(_NO_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
