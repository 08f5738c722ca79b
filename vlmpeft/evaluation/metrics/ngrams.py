"""Metrics of captions: which word sequences of the references an answer repeats."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.text import rouge_score

from vlmpeft.evaluation.metrics.base import Answer, TextMetric
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.private_apis import BLEU_COMPUTE, BLEU_UPDATE

Ngrams = Counter[tuple[str, ...]]


class Bleu(TextMetric):
    """BLEU over the whole split (Papineni et al. 2002, section 2.3), from torchmetrics' counts.

    Words are what white space separates, case kept. Clipped n-gram counts and lengths are summed over all
    items before the precisions are taken; an unfinished answer counts as an empty text. The score of one
    item is its sentence BLEU with 1 added to hits and totals above single words (Lin and Och 2004, ORANGE,
    "BLEUS"): the headline is not the mean of these.

    Args:
        n_gram: longest word sequence; a split that repeats none of this length scores 0.
    """

    name = "bleu"
    numerator: Tensor
    denominator: Tensor
    lengths: Tensor

    def __init__(self, *, n_gram: int = 4):
        if n_gram < 1:
            raise UserError(f"Bleu n_gram={n_gram}: at least 1")
        super().__init__()
        self.n_gram = n_gram
        for state, size in (("numerator", n_gram), ("denominator", n_gram), ("lengths", 2)):
            self.add_state(state, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def score(self, generated: str, expected: str) -> float:
        return self.score_item(Answer(generated, (expected,)))

    def score_item(self, answer: Answer) -> float:
        """Sentence BLEU, smoothed."""
        return _smoothed_bleu(*_bleu_counts([answer], self.n_gram))

    def update(self, answers: Sequence[Answer]) -> None:
        """Add the counts of items."""
        self.count += len(answers)
        for state, counts in zip(
            (self.numerator, self.denominator, self.lengths),
            _bleu_counts(answers, self.n_gram),
            strict=True,
        ):
            state += counts.to(state.device)

    def compute(self) -> Tensor:
        """BLEU of the summed counts, without smoothing."""
        weights = [1 / self.n_gram] * self.n_gram
        got, want = self.lengths
        return BLEU_COMPUTE.get()(
            got, want, self.numerator, self.denominator, self.n_gram, weights, smooth=False
        ).double()


def _bleu_counts(answers: Sequence[Answer], n_gram: int) -> tuple[Tensor, Tensor, Tensor]:
    """(hits by n, totals by n, (words generated, words of the closest references)) summed over answers."""
    numerator, denominator = torch.zeros(2, n_gram, dtype=torch.float64)
    lengths = BLEU_UPDATE.get()(
        [answer.generated if answer.finished else "" for answer in answers],
        [answer.references for answer in answers],
        numerator,
        denominator,
        torch.zeros((), dtype=torch.float64),
        torch.zeros((), dtype=torch.float64),
        n_gram,
    )
    return numerator, denominator, torch.stack(lengths)


def _smoothed_bleu(numerator: Tensor, denominator: Tensor, lengths: Tensor) -> float:
    """BLEU of one item; the smoothing of torchmetrics keeps every answer below n words at 0."""
    if numerator[0] == 0:
        return 0.0
    extra = torch.ones_like(numerator)
    extra[0] = 0
    precision = ((numerator + extra) / (denominator + extra)).log().mean().exp().item()
    got, want = lengths.tolist()
    return precision * min(1.0, math.exp(1 - want / got))


class RougeL(TextMetric):
    """F1 of the longest common subsequence of words (Lin 2004, section 3.1, beta = 1), as torchmetrics has it.

    Words are runs of letters and digits, in lower case and not stemmed; the official script knows a-z and
    0-9 alone, here letters of every script count. Of several references the best one counts.
    """

    name = "rouge_l"

    def score(self, generated: str, expected: str) -> float:
        scores = rouge_score(
            [generated], [[expected]], rouge_keys="rougeL", normalizer=_letters, tokenizer=str.split
        )
        return scores["rougeL_fmeasure"].item()


class CiderD(TextMetric):
    """CIDEr-D (Vedantam et al. 2015, "Gameability"): tf-idf similarity of n-grams to the references, 0 to 10.

    n = 1 to 4, counts clipped to the reference's, a Gaussian penalty on the difference in length (sigma =
    6), mean over n and over the references, times 10; as coco-caption's cider_scorer.py. Document
    frequencies are those of the references of the split, each item one document: a word in all of them
    weighs nothing, and a split of one item scores 0. Words are lower case without punctuation, not the
    output of the Java PTB tokenizer, so figures differ a little from published ones.
    """

    name = "cider_d"

    def __init__(self) -> None:
        super().__init__()
        self.document_frequency: Ngrams = Counter()
        self.documents = 0

    def prepare(self, references: Sequence[tuple[str, ...]]) -> None:
        self.document_frequency, self.documents = Counter(), len(references)
        for texts in references:
            self.document_frequency.update({ngram for text in texts for ngram in _ngrams(text)})

    def score(self, generated: str, expected: str) -> float:
        """CIDEr-D against one reference, in [0, 10]."""
        if not self.documents:
            raise UserError(
                "cider_d weighs words by their frequency over the split: call prepare(references) first"
            )
        got, want = _ngrams(generated), _ngrams(expected)
        words = len(_letters(generated).split()) - len(_letters(expected).split())
        penalty = math.exp(-(words**2) / (2 * 6.0**2))
        return 10 * penalty * sum(self._similarity(got, want, n) for n in range(1, 5)) / 4

    def score_item(self, answer: Answer) -> float:
        """The mean over the references."""
        if not answer.finished:
            return 0.0
        scores = [self.score(answer.generated, reference) for reference in answer.references]
        return sum(scores) / len(scores)

    def _similarity(self, got: Ngrams, want: Ngrams, n: int) -> float:
        """Cosine of the tf-idf vectors of n-grams, with the answer's clipped to the reference's."""
        a, b = self._weigh(got, n), self._weigh(want, n)
        norm = math.hypot(*a.values()) * math.hypot(*b.values())
        return sum(min(a[ngram], b[ngram]) * b[ngram] for ngram in a if ngram in b) / (norm or 1.0)

    def _weigh(self, counts: Ngrams, n: int) -> dict[tuple[str, ...], float]:
        idf = {
            ngram: math.log(self.documents / max(1, self.document_frequency[ngram]))
            for ngram in counts
            if len(ngram) == n
        }
        return {ngram: counts[ngram] * weight for ngram, weight in idf.items()}


def _ngrams(text: str) -> Ngrams:
    words = _letters(text).split()
    return Counter(
        tuple(words[start : start + n]) for n in range(1, 5) for start in range(len(words) - n + 1)
    )


def _letters(text: str) -> str:
    """Lower case, with a blank for all that is neither letter nor digit.

    >>> _letters("Two dogs, one_cat!").split()
    ['two', 'dogs', 'one', 'cat']
    """
    return re.sub(r"[\W_]+", " ", text.lower())
