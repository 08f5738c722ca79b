"""Scores of a generated answer against the expected one."""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from vlmpeft.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()  # torchmetrics imports torchvision

from torchmetrics import Metric


class TextMetric(Metric):
    """The mean of `score` over items; an answer cut off by the token limit scores 0.

    A metric of your own: subclass, give it a `name`, implement `score`, and name the class by its dotted
    path in `model.metrics`.
    """

    name: str
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, generated: str, expected: str) -> float:
        """One item's score in [0, 1]."""

    def update(self, scores: list[float]) -> None:
        """Add items by their scores, as `score_item` gave them."""
        self.total += sum(scores)
        self.count += len(scores)

    def score_item(self, generated: str, expected: str, finished: bool) -> float:
        """`score`, or 0 for an answer that did not come to its end."""
        return self.score(generated, expected) if finished else 0.0

    def compute(self) -> Tensor:
        return self.total / self.count.clamp(min=1)


class ExactMatch(TextMetric):
    """1 if the answers are the same text, up to white space at both ends."""

    name = "exact_match"

    def score(self, generated: str, expected: str) -> float:
        return float(generated.strip() == expected.strip())


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


def _squad_words(text: str) -> list[str]:
    """The words of a text after SQuAD's normalisation.

    >>> _squad_words("The quick, brown fox.")
    ['quick', 'brown', 'fox']
    """
    bare = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()
