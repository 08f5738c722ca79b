"""Forms of one adapter, asked the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vlmpeft.evaluation.equivalence import Answers, Gate, Trial, compare
from vlmpeft.evaluation.tower_cache import Sample

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
