"""Metrics of what a model finds likely, whatever it generates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from vlmpeft.evaluation.metrics.base import Answer, TextMetric
from vlmpeft.runtime.errors import UserError, did_you_mean


class Perplexity(TextMetric):
    """exp of the mean -log p over all tokens of the first references; lower is better.

    Long references weigh more than short ones. The score of one item is exp of its own mean. Comparable
    between models of one tokenizer only.
    """

    name = "perplexity"
    higher_is_better = False

    def score(self, generated: str, expected: str) -> float:
        raise NotImplementedError("perplexity is not a matter of two texts: use score_item")

    def score_item(self, answer: Answer) -> float:
        """Perplexity of the training target; inf where it overflows a float."""
        try:
            return math.exp(answer.loss / max(answer.tokens, 1))
        except OverflowError:
            return math.inf

    def update(self, answers: Sequence[Answer]) -> None:
        """Add losses and tokens."""
        self.total += sum(answer.loss for answer in answers)
        self.count += sum(answer.tokens for answer in answers)

    def compute(self) -> Tensor:
        """Perplexity over all tokens."""
        return (self.total / self.count.clamp(min=1)).exp()


class ChoiceAccuracy(TextMetric):
    """1 if the most probable of an item's choices is a reference; nothing is generated for it.

    Scoring choices by likelihood follows Brown et al. 2020 (GPT-3), section 2.4. An answer cut off by the
    token limit counts like any other.

    Args:
        normalize: what log p of a choice is divided by: none favours short choices, tokens is GPT-3's,
            characters depends on no tokenizer (`acc_norm` of EleutherAI's harness).
    """

    name = "choice_accuracy"
    needs_choices = True

    def __init__(self, *, normalize: Literal["none", "tokens", "characters"] = "none"):
        lengths = "none", "tokens", "characters"
        if normalize not in lengths:
            raise UserError(
                f"ChoiceAccuracy normalize={normalize!r}.{did_you_mean(str(normalize), lengths)}"
            )
        super().__init__()
        self.normalize = normalize

    def score(self, generated: str, expected: str) -> float:
        raise NotImplementedError("choice_accuracy is not a matter of two texts: use score_item")

    def score_item(self, answer: Answer) -> float:
        """1 or 0.

        Raises:
            UserError: the item has no choices, or a reference that is none of them.
        """
        _check_choices(answer)
        per_unit = [
            log_probability / max(length, 1)
            for log_probability, length in zip(
                answer.choice_log_probabilities, self._lengths(answer), strict=True
            )
        ]
        best = answer.choices[per_unit.index(max(per_unit))]
        return float(best.strip() in {reference.strip() for reference in answer.references})

    def _lengths(self, answer: Answer) -> Sequence[int]:
        if self.normalize == "tokens":
            return answer.choice_tokens
        if self.normalize == "characters":
            return [len(choice) for choice in answer.choices]
        return [1] * len(answer.choices)


def _check_choices(answer: Answer) -> None:
    if not answer.choices:
        raise UserError(
            f"choice_accuracy: the item with the reference {answer.references[0][:80]!r} has no choices"
        )
    choices = [choice.strip() for choice in answer.choices]
    for reference in answer.references:
        if reference.strip() not in choices:
            raise UserError(
                f"choice_accuracy: the reference {reference[:80]!r} is none of the choices {choices}"
            )
