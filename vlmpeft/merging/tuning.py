"""Knobs of a merge chosen by score on validation data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlmpeft.base.loading import load_base
from vlmpeft.data.datamodule import VLMData
from vlmpeft.evaluation.metrics.build import MetricSpec, build_metric
from vlmpeft.evaluation.scoring import Scorer, score_loader
from vlmpeft.merging.merger import Merger
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.result import Result, attach_result
from vlmpeft.runtime.errors import UserError, did_you_mean

GRID: dict[str, tuple[float, ...]] = {
    "lam": (0.3, 0.5, 0.7, 1.0, 1.5, 2.0),
    "density": (0.1, 0.2, 0.5, 0.8),
    "gamma": (0.0, 0.01, 0.05),
    "epsilon": (0.0, 0.1, 0.3),
}


@dataclass(frozen=True)
class Tried:
    """One point of a search.

    Args:
        knobs: what was set.
        scores: data set -> score.
        mean: over the data sets.
    """

    knobs: dict[str, float]
    scores: dict[str, float]
    mean: float


class Judge:
    """Scores merges of some adapters on data sets.

    Args:
        merger: the adapters.
        files: data set's name -> file of conversations.
        metric: what is compared.
        limit: items a data set; None is all.
    """

    def __init__(
        self,
        merger: Merger,
        files: Mapping[str, str],
        metric: MetricSpec = "ExactMatch",
        limit: int | None = None,
    ):
        self.merger = merger
        model, self.components = merger.model, merger.components
        if next(model.parameters()).is_meta:
            model, _, self.components = load_base(merger.spec)
        self.model = model
        self.metric = build_metric(metric)
        self._sets = {name: self._prepare(file, limit) for name, file in files.items()}

    def _prepare(self, file: str, limit: int | None) -> tuple[VLMData, Scorer]:
        first = self.merger.first
        data = VLMData(
            train=None,
            val=file,
            max_pixels=first.manifest.max_pixels,
            chat_template=first.chat_template,
        )
        data.eval_limit = limit
        data.prepare(self.merger.processor, splits=("val",))
        decoding = self.merger.decoding
        if decoding is None:
            raise UserError(
                f"adapter {first.folder} does not say how long answers may be, so it cannot be scored"
            )
        scorer = Scorer(data.encoder, [self.metric], decoding.max_new_tokens, decoding.end_ids)
        return data, scorer

    def scores(self, result: Result | None) -> dict[str, float]:
        """Data set -> score of a merge; None scores what is on the model already."""
        attached = result and attach_result(result, self.model, self.components)
        try:
            return {name: self._score(*one) for name, one in self._sets.items()}
        finally:
            if attached:
                attached.detach()

    def _score(self, data: VLMData, scorer: Scorer) -> float:
        device = next(self.model.parameters()).device
        found, _ = score_loader(
            scorer, self.model, data.scoring_loader("val"), device, torch.no_grad()
        )
        return found[self.metric.name]


def search(
    merger: Merger,
    recipe: Recipe,
    grid: Mapping[str, Sequence[float]],
    score: Callable[[Result], dict[str, float]],
) -> tuple[Recipe, list[Tried]]:
    """The knobs with the best mean score; of equals, the first.

    Args:
        merger: the adapters.
        recipe: what is not searched.
        grid: knob -> values.
        score: data set -> score of a merge.
    """
    tried = []
    for values in itertools.product(*grid.values()):
        knobs = dict(zip(grid, values, strict=True))
        scores = score(merger.merge(replace(recipe, **knobs)))  # type: ignore[arg-type]
        tried.append(Tried(knobs, scores, sum(scores.values()) / len(scores)))
    best = max(tried, key=lambda one: one.mean)
    return replace(recipe, **best.knobs), tried  # type: ignore[arg-type]


def grid_of(knobs: Iterable[str], recipe: Recipe) -> dict[str, tuple[float, ...]]:
    """The values that are tried of each knob.

    Raises:
        UserError: a knob that cannot be searched, or that the rule does not take.
    """
    found = {}
    for knob in knobs:
        if knob not in GRID:
            raise UserError(
                f"merge: --tune {knob}: it is no knob to tune.{did_you_mean(knob, GRID)}"
            )
        if knob not in recipe.rule.knobs:
            raise UserError(f"merge: --tune {knob} has no effect with method {recipe.method}")
        found[knob] = GRID[knob]
    return found


def plain(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """A search as plain data."""
    return [{"knobs": t.knobs, "scores": t.scores, "mean": t.mean} for t in tried]
