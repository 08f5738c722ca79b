"""What a score is worth above an answer that has not seen the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from vlmpeft.evaluation.metrics.base import Answer, TextMetric
from vlmpeft.evaluation.metrics.build import build_metric
from vlmpeft.runtime.errors import UserError, did_you_mean

_CANDIDATES = 50  # constant answers tried, most frequent references first


class ChanceCorrected(TextMetric):
    """(s - c) / (1 - c): 1 is perfect, 0 is chance level, below 0 worse than that.

    The form of Cohen's kappa (Cohen 1960, eq. 1), with s the item's score by another metric and c what
    chance reaches; the headline is the mean over items. An unfinished answer has s = 0.

    Args:
        metric: the metric that is corrected: a short name, a dotted path, or {class_path, init_args}. Of a
            metric that is not a mean, such as Bleu, the scores of single items count.
        chance: majority is what the best constant answer scores over the split (one of its references,
            the 50 most frequent are tried); choices is 1 / number of choices of each item; or a number.
    """

    def __init__(
        self,
        *,
        metric: str | dict[str, Any] = "ExactMatch",
        chance: Literal["majority", "choices"] | float = "majority",
    ):
        super().__init__()
        self.inner = build_metric(metric)
        if not self.inner.higher_is_better:
            raise UserError(
                f"ChanceCorrected: {self.inner.name} is an error, chance has no share of it"
            )
        _check_chance(chance)
        self.name = f"{self.inner.name}_chance_corrected"
        self.chance = chance
        self.needs_choices = self.inner.needs_choices or chance == "choices"
        self.level: float | None = None if isinstance(chance, str) else chance

    def prepare(self, references: Sequence[tuple[str, ...]]) -> None:
        """Find the best constant answer.

        Raises:
            UserError: it is always right.
        """
        self.inner.prepare(references)
        if self.chance == "majority":
            self.level, constant = best_constant(self.inner, references)
            if self.level >= 1:
                raise UserError(
                    f"{self.name}: the constant answer {constant[:80]!r} is right everywhere, "
                    "so nothing is left to correct"
                )

    def score(self, generated: str, expected: str) -> float:
        return self.score_item(Answer(generated, (expected,)))

    def score_item(self, answer: Answer) -> float:
        """The corrected score, at most 1."""
        chance = self._chance_of(answer)
        return (self.inner.score_item(answer) - chance) / (1 - chance)

    def _chance_of(self, answer: Answer) -> float:
        if self.chance == "choices":
            if len(answer.choices) < 2:
                raise UserError(
                    f"{self.name}: the item with the reference {answer.references[0][:80]!r} has "
                    f"{len(answer.choices)} choices, chance needs 2 or more"
                )
            return 1 / len(answer.choices)
        if self.level is None:
            raise UserError(f"{self.name}: call prepare(references) first, it finds the majority")
        return self.level

    def identity(self) -> dict[str, Any]:
        """With the inner metric's own identity."""
        known = super().identity()
        return known | {"init_args": {"metric": self.inner.identity(), "chance": self.chance}}


def best_constant(metric: TextMetric, references: Sequence[tuple[str, ...]]) -> tuple[float, str]:
    """(mean score, text) of the constant answer that scores best over a split."""
    items = Counter(references)
    frequent = Counter(text for texts in references for text in dict.fromkeys(texts))
    totals = {
        text: sum(n * metric.score_item(_constant(text, texts)) for texts, n in items.items())
        for text, _ in frequent.most_common(_CANDIDATES)
    }
    best = max(totals, key=lambda text: totals[text])
    return totals[best] / len(references), best


def _constant(text: str, references: tuple[str, ...]) -> Answer:
    """The answer of a model that says `text`, and finds it likeliest of all choices."""
    choices = tuple(dict.fromkeys((text, *references)))
    log_probabilities = (0.0, *[-1e9] * (len(choices) - 1))
    return Answer(
        text,
        references,
        choices=choices,
        choice_log_probabilities=log_probabilities,
        choice_tokens=(1,) * len(choices),
    )


def _check_chance(chance: str | float) -> None:
    if isinstance(chance, str):
        if chance not in ("majority", "choices"):
            hint = did_you_mean(chance, ("majority", "choices"))
            raise UserError(f"ChanceCorrected chance={chance!r}.{hint}")
    elif not 0 <= chance < 1:
        raise UserError(f"ChanceCorrected chance={chance}: at least 0 and below 1")
