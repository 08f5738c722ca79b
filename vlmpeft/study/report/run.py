"""One run of a study: its record, and the scores of its items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vlmpeft.runtime.errors import UserError
from vlmpeft.study.report.record_shape import SPLITS
from vlmpeft.study.report.scored_items import read_scored


@dataclass(frozen=True)
class Items:
    """The scores of one run's items, in the order of their ids.

    Args:
        ids: of the items, (N,).
        clusters: what of them is not independent: the picture each is about, (N,).
        scores: metric -> (N,), nan where a metric is not for an item.
        fields: per item, the fields of its conversation.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    fields: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Run:
    """One run folder: its record, and on demand the scores of its items."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def row(self) -> str:
        return self.record.get("row") or self.folder.name.rsplit("-seed", 1)[0]

    @property
    def task(self) -> str:
        return str(self.record.get("task") or self._configured("data", "train"))

    @property
    def base(self) -> str:
        base = self.record.get("base") or {}
        name = self.record.get("base_name") or base.get("id")
        return str(name or self._configured("model", "base", "path"))

    @property
    def seed(self) -> int | None:
        return self.record.get("seed", self._configured("seed_everything"))

    def _configured(self, *path: str) -> Any:
        """What the config says, which is all that a failed `fit` leaves."""
        value: Any = self.record.get("config")
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def is_done(self) -> bool:
        return self.record["status"] == "done"

    @property
    def primary(self) -> str:
        return self.record["primary"]

    @property
    def split(self) -> str:
        """The reported split: test, else val."""
        tuned = self.record["metrics"]["tuned"]
        return next(split for split in SPLITS if split in tuned)

    def score(
        self, metric: str | None = None, split: str | None = None, state: str = "tuned"
    ) -> float:
        """A score of the record; nan if it has none.

        Args:
            metric: default the primary one.
            split: default the reported one.
            state: tuned or base.
        """
        scores = self.record["metrics"].get(state, {}).get(split or self.split, {})
        return float(scores.get(metric or self.primary, float("nan")))

    @cached_property
    def items(self) -> Items:
        """The scores of the reported split, item by item.

        Raises:
            UserError: they are not there, or damaged.
        """
        return read_scores(self.folder / "items.jsonl.gz")

    def with_items(self, items: Items) -> Run:
        """The same run with these scores of items in place of those on disk."""
        other = Run(self.folder, self.record)
        other.__dict__["items"] = items
        return other


def read_scores(path: Path, cluster: str = "image") -> Items:
    """The scores of an `items.jsonl.gz`.

    Args:
        path: of the file.
        cluster: image, or a field whose equal values belong together.

    Raises:
        UserError: it is not there, or damaged.
    """
    try:
        return scores_of(read_scored(path), cluster)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"items {path} cannot be read: {error}; remove the run's folder and run the study again"
        ) from error


def scores_of(items: Iterable[Mapping[str, Any]], cluster: str = "image") -> Items:
    """The scores of items as `items.jsonl.gz` has them.

    Args:
        items: in any order.
        cluster: image, or a field whose equal values belong together.
    """
    items = sorted(items, key=lambda item: str(item["id"]))
    names = dict.fromkeys(chain.from_iterable(item["scores"] for item in items))
    scores = {n: np.array([i["scores"].get(n, np.nan) for i in items], float) for n in names}
    ids = tuple(str(item["id"]) for item in items)
    clusters = tuple(_cluster(item, cluster) for item in items)
    return Items(ids, clusters, scores, tuple(item.get("fields") or {} for item in items))


def _cluster(item: Mapping[str, Any], by: str) -> str:
    if by != "image":
        return str(item["fields"].get(by, item["id"]))
    return " ".join(item["image"]) or str(item["id"])
