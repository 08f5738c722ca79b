"""What adapters of other bases lose: their scores on their own base and on the one that a merge is for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.loading import attach_adapter
from vlmpeft.base.fingerprint import fingerprint
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.batches.dataset import Item
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.equivalence import encode_items, make_trial, read_items
from vlmpeft.merging.merger import Merger
from vlmpeft.merging.operands import bases_named
from vlmpeft.runtime.errors import UserError

SAMPLES = 16  # of each data set


@dataclass(frozen=True)
class Score:
    """How an adapter answers on one base.

    Args:
        base: id of the base.
        fingerprint: of the base.
        exact_match: share of greedy answers that are the reference answer, of 1; None if it could not be scored.
        loss: -log p of the reference answers, nats a token; None likewise.
        problem: why it could not be scored.
    """

    base: str
    fingerprint: str
    exact_match: float | None = None
    loss: float | None = None
    problem: str | None = None

    def __str__(self) -> str:
        where = f"{self.base} ({self.fingerprint})"
        if self.problem is not None:
            return f"{where}: no score, {self.problem}"
        return f"{where}: exact match {self.exact_match:.2f}, loss {self.loss:.2f}"


@dataclass(frozen=True)
class Mismatch:
    """One adapter of another base.

    Args:
        adapter: its folder.
        samples: number of answers that are scored.
        own: on the base it was trained on.
        here: on the base that the merge is for.
    """

    adapter: str
    samples: int
    own: Score
    here: Score

    def __str__(self) -> str:
        return f"adapter {self.adapter} on its own base {self.own}; on base {self.here}; {self.samples} answers"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class _Place:
    """An adapter on a base that is to be scored."""

    adapter: Adapter
    spec: BaseSpec
    fingerprint: str

    def score(self, **found: Any) -> Score:
        return Score(self.spec.path, self.fingerprint, **found)


def find_mismatches(
    merger: Merger, files: Sequence[str] = (), limit: int | None = None
) -> list[Mismatch]:
    """Adapters whose base is not the one that a merge is for, with their scores on both.

    Widths are those that the adapter was trained on, so that the base alone differs.

    Args:
        merger: the adapters.
        files: conversations that are answered; none is the built-in task.
        limit: items of each.

    Raises:
        UserError: a file that cannot be read, or an adapter that does not fit the base.
    """
    here = merger.origin.fingerprint
    adapters = {operand.folder: operand.adapter for operand in merger.operands}
    odd = [a for a in adapters.values() if a.manifest.base.fingerprint != here]
    if not odd:
        return []
    items = [i for file in files or (None,) for i in read_items(file, None, limit or SAMPLES)]
    places = [place for adapter in odd for place in _places(adapter, merger)]
    scores = dict(_scores(places, items))
    return [
        Mismatch(adapter.folder, len(items), *(scores[p] for p in places if p.adapter is adapter))
        for adapter in odd
    ]


def _places(adapter: Adapter, merger: Merger) -> tuple[_Place, _Place]:
    """On its own base, and on that of the merge."""
    here = replace(adapter.trained_base(merger.spec.path), revision=merger.spec.revision)
    return (
        _Place(adapter, adapter.trained_base(), adapter.manifest.base.fingerprint),
        _Place(adapter, here, merger.origin.fingerprint),
    )


def _scores(places: Sequence[_Place], items: Sequence[Item]) -> Iterator[tuple[_Place, Score]]:
    """One base at a time, beside what the merge itself holds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for spec in dict.fromkeys(place.spec for place in places):
        here = [place for place in places if place.spec == spec]
        try:
            model, _, components = load_base(spec, device)
            found = fingerprint(spec)
        except UserError as error:
            yield from ((place, place.score(problem=str(error))) for place in here)
            continue
        for place in here:
            yield place, _score(place, found, model, components, items)


def _score(place: _Place, found: str, model: Any, components: Any, items: Sequence[Item]) -> Score:
    if found != place.fingerprint:
        return place.score(problem=f"what is there now is another ({found})")
    manifest, processor = place.adapter.manifest, place.adapter.processor
    samples = encode_items(items, Encoder(processor, None, manifest.max_pixels))
    with bases_named(manifest.base.id, place.spec.path):
        attached = attach_adapter(place.adapter, model, components)
    place.adapter.forget_tensors()
    try:
        trial = make_trial(model, processor, manifest.decoding, samples)
        answers = trial.answers(model)
    finally:
        attached.detach()
    return place.score(exact_match=answers.exact_match, loss=answers.loss)
