"""Forms of one adapter, asked the same questions, and the gate between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmpeft.evaluation.equivalence import Answers, Difference, Trial, compare
from vlmpeft.evaluation.tower_cache import Sample
from vlmpeft.runtime.errors import GateFailed

_LARGEST_SHARE = (
    0.5  # of the adapter's own effect on the answers, in KL, that a form of it may be off
)
_ROUNDING_KL = 1e-6
ATTACHED, ALONE = "attached, as trained", "no adapter, as trained"


class Routes:
    """What every form answers, in the order they were asked.

    Args:
        trial: the questions.
    """

    def __init__(self, trial: Trial):
        self.trial = trial
        self.answers: dict[str, Answers] = {}

    def ask(self, route: str, model: Any, samples: Sequence[Sample] | None = None) -> Answers:
        """Note the answers of a model under a name.

        Args:
            route: the name.
            model: on its device.
            samples: the trial's, as another processor encodes them.
        """
        self.answers[route] = self.trial.answers(model, samples)
        return self.answers[route]

    def check(
        self, written: str, reference: str, alone: str, tolerance: float | None, only: bool
    ) -> dict[str, Any]:
        """Stop an export whose written form is not what it stands for; else the gate as plain data.

        Args:
            written: the form that was written, as reloaded from disk.
            reference: what it stands for.
            alone: the same without adapter.
            tolerance: largest |delta logits|; None sets no limit.
            only: whether that limit alone decides.

        Raises:
            GateFailed: with the measures.
        """
        difference, effect = (
            compare(self.answers[reference], self.answers[other]) for other in (written, alone)
        )
        gate = Gate(difference, effect, tolerance, alone=only)
        gate.check(f"{written} is not what the adapter is on its base ({reference})")
        return {"reference": reference, "exported": written} | gate.to_dict()

    def rows(self, written: str) -> list[dict[str, Any]]:
        """Every form beside the adapter as it was trained.

        Args:
            written: which of them was.
        """
        trained = self.answers[ATTACHED]
        return [
            {"route": route, "written": route == written}
            | asdict(compare(trained, answers))
            | {"loss": answers.loss, "exact_match": answers.exact_match}
            for route, answers in self.answers.items()
        ]


@dataclass(frozen=True)
class Gate:
    """What was compared, and what it may come to.

    Args:
        difference: of the model that was written from the one it stands for.
        effect: of the base without adapter from the latter: what the adapter does.
        tolerance: largest |delta logits|; None sets no limit.
        alone: whether that limit alone decides; else the KL may also be no more than half of the adapter's own effect,
            so that a merge that loses a small adapter in rounding does not pass.
    """

    difference: Difference
    effect: Difference
    tolerance: float | None
    alone: bool = False

    @property
    def failures(self) -> list[str]:
        """Why it does not pass; a NaN never does."""
        found, most = [], max(_ROUNDING_KL, _LARGEST_SHARE * self.effect.mean_kl)
        if self.tolerance is not None and not self.difference.max_logit <= self.tolerance:
            found.append(
                f"max |delta logits| {self.difference.max_logit:.3g} is above the tolerance {self.tolerance:g}"
            )
        if not self.alone and not self.difference.mean_kl <= most:
            found.append(
                f"mean KL {self.difference.mean_kl:.3g} is more than half of what the adapter itself does to the answers "
                f"({self.effect.mean_kl:.3g})"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        return {
            "tolerance": self.tolerance,
            **asdict(self.difference),
            "effect_of_adapter": asdict(self.effect),
            "passed": not self.failures,
        }

    def check(self, what: str) -> None:
        """Stop an export.

        Raises:
            GateFailed: with the reasons and the other measures.
        """
        if self.failures:
            raise GateFailed(
                f"{what}: {'; '.join(self.failures)}; argmax agreement {self.difference.argmax_agreement:.3f}, text "
                f"agreement {self.difference.text_agreement:.3f}; nothing was written. With --tolerance X |delta logits| up to X pass"
            )
