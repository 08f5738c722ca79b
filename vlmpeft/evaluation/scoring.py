"""What greedy answers to scored items are worth, over a split and by group."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from vlmpeft.data.batches.dataset import Item
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.decoding import Decoded, Limits, WholePrompts, find_pad_id
from vlmpeft.evaluation.metrics import Answer, TextMetric
from vlmpeft.evaluation.prefix_cache import SharedPrefixes
from vlmpeft.evaluation.tower_cache import FeatureCache, Sample
from vlmpeft.runtime.errors import UserError

Scores = dict[str, float]
_CHECKED = 8  # samples that are decoded in both ways, to see that both say the same
_TOLERANCE = 0.02  # of -log p: 16-bit weights and 4-bit kernels round differently by batch


class Scorer:
    """Scores samples with one model and sums up.

    Args:
        encoder: tokens of choices, and the tokenizer that turns answers into text.
        metrics: what each answer is scored by.
        max_new_tokens: length limit of an answer, end token included; a longer one counts as wrong.
        end_ids: tokens that end an answer.
        group_by: field by whose values scores are also given.
    """

    def __init__(
        self,
        encoder: Encoder,
        metrics: Sequence[TextMetric],
        max_new_tokens: int,
        end_ids: Sequence[int],
        group_by: str | None = None,
    ):
        self.encoder, self.metrics, self.group_by = encoder, list(metrics), group_by
        self.tokenizer = encoder.processor.tokenizer
        self.max_new_tokens, self.end_ids = max_new_tokens, sorted(set(end_ids))
        self.loss = MeanMetric()
        self.items: list[dict[str, Any]] = []
        self._decoder: _Decoder | None = None

    def prepare(self, items: Sequence[Item]) -> None:
        """Forget every item, and show the metrics what is accepted of those that come."""
        self.items, self._decoder = [], None
        self.loss.reset()
        for metric in self.metrics:
            metric.reset()
            mine = [item for item in items if self._concerns(metric, item.conversation.extra)]
            metric.prepare([item.references for item in mine])

    def _concerns(self, metric: TextMetric, fields: Mapping[str, Any]) -> bool:
        return metric.groups is None or str(fields.get(str(self.group_by))) in metric.groups

    @contextlib.contextmanager
    def limited_to(self, max_new_tokens: int) -> Iterator[None]:
        """Another length limit for the splits that are scored meanwhile."""
        own, self.max_new_tokens = self.max_new_tokens, max_new_tokens
        try:
            yield
        finally:
            self.max_new_tokens = own

    def to(self, device: torch.device) -> None:
        """Move the metric states, so that they can be reduced over ranks."""
        for metric in (*self.metrics, self.loss):
            metric.to(device)

    @torch.no_grad()
    def add(self, model: Any, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Answer and score one batch of `scoring_loader`; returns one plain record an item."""
        if self._decoder is None:
            self._decoder = _Decoder(model, self._limits())
        choices = [self._choice_ids(sample) for sample in samples]
        decoded = self._decoder.decode(samples, choices)
        triples = zip(samples, decoded, choices, strict=True)
        records = [self._record(item, one, ids) for (item, _), one, ids in triples]
        for metric in self.metrics:
            answers = [read_answer(record) for record in records if metric.name in record["scores"]]
            if answers:
                metric.update(answers)
        for one in decoded:
            self.loss.update(torch.tensor(one.losses))
        self.items += records
        return records

    def compute(self) -> Scores:
        """Metric name -> value over all items so far; `loss` is per supervised token, in nats."""
        return _values(self.metrics) | {"loss": self.loss.compute().item()}

    def groups(self) -> dict[str, Scores]:
        """The same for each value of `group_by`, with the number of `items`; of this process's items."""
        if not self.group_by:
            return {}
        return scores_by_group(self.metrics, self.items, self.group_by)

    def _limits(self) -> Limits:
        return Limits(self.max_new_tokens, tuple(self.end_ids), find_pad_id(self.tokenizer))

    def _choice_ids(self, sample: Sample) -> list[list[int]]:
        item, _ = sample
        if not any(metric.needs_choices for metric in self.metrics):
            return []
        assert item.turn is not None
        return [self.encoder.answer_ids(item.conversation, item.turn, c) for c in item.choices]

    def _record(self, item: Item, decoded: Decoded, choices: list[list[int]]) -> dict[str, Any]:
        finished = bool(decoded.ids) and decoded.ids[-1] in self.end_ids
        extra = item.conversation.extra
        record: dict[str, Any] = {
            "id": item.id,
            "fields": {key: value for key, value in extra.items() if key != "choices"},
            "image": [image.label for image in item.conversation.images],
            "prompt": item.prompt,
            "expected": item.expected,
        }
        if len(item.references) > 1:
            record["references"] = list(item.references)
        if choices:
            record["choices"] = list(item.choices)
            record["choice_log_probabilities"] = [round(value, 5) for value in decoded.choices]
            record["choice_tokens"] = [len(ids) for ids in choices]
        record |= {
            "generated": self.tokenizer.decode(decoded.ids, skip_special_tokens=True).strip(),
            "finish_reason": "stop" if finished else "length",
            "token_log_probabilities": [round(value, 5) for value in decoded.log_probabilities],
            "loss": sum(decoded.losses) / len(decoded.losses),
            "tokens": len(decoded.losses),
        }
        answer = read_answer(record)
        mine = [metric for metric in self.metrics if self._concerns(metric, extra)]
        return record | {"scores": {metric.name: metric.score_item(answer) for metric in mine}}


def make_scorer(
    encoder: Encoder,
    metrics: Sequence[TextMetric],
    limits: Limits,
    group_by: str | None,
    items: Iterable[Item],
) -> Scorer:
    """The scorer of known items.

    Args:
        encoder: as of Scorer.
        metrics: as of Scorer.
        limits: when an answer ends.
        group_by: as of Scorer.
        items: every item that will be scored.

    Raises:
        UserError: a metric is for groups that no item is in; its score would be missing without a word.
    """
    there = {str(item.conversation.extra.get(str(group_by))) for item in items}
    for metric in metrics:
        if there and metric.groups and not there & {*metric.groups}:
            raise UserError(
                f"model.metrics: {metric.name} is for groups {', '.join(metric.groups)}, but by "
                f"data.group_by={group_by} there are {', '.join(sorted(there)[:20])}"
            )
    return Scorer(encoder, metrics, limits.max_new_tokens, limits.end_ids, group_by)


def read_answer(record: Mapping[str, Any]) -> Answer:
    """What a metric sees of an item's record: scores can be computed again from items.jsonl.gz."""
    return Answer(
        generated=record["generated"],
        references=tuple(record.get("references") or (record["expected"],)),
        finished=record["finish_reason"] == "stop",
        loss=record["loss"] * record["tokens"],
        tokens=record["tokens"],
        choices=tuple(record.get("choices", ())),
        choice_log_probabilities=tuple(record.get("choice_log_probabilities", ())),
        choice_tokens=tuple(record.get("choice_tokens", ())),
    )


def scores_by_group(
    metrics: Sequence[TextMetric], items: Sequence[Mapping[str, Any]], field: str
) -> dict[str, Scores]:
    """Value of `field` -> scores over the items that have it, `loss` and number of `items` among them."""
    members: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        members.setdefault(str(item["fields"].get(field, "(none)")), []).append(item)
    return {value: _score_items(metrics, group) for value, group in sorted(members.items())}


def _score_items(metrics: Sequence[TextMetric], items: Sequence[Mapping[str, Any]]) -> Scores:
    fresh = [copy.deepcopy(metric) for metric in metrics]
    for metric in fresh:
        metric.reset()
        if answers := [read_answer(item) for item in items if metric.name in item["scores"]]:
            metric.update(answers)
    tokens = sum(item["tokens"] for item in items)
    loss = sum(item["loss"] * item["tokens"] for item in items) / max(1, tokens)
    return _values(fresh) | {"loss": loss, "items": len(items)}


def _values(metrics: Sequence[TextMetric]) -> Scores:
    """Name -> value; a metric of several values gives name/suffix, one without an item nothing."""
    found: Scores = {}
    for metric in metrics:
        if not metric.update_called:
            continue
        value = metric.compute()
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{metric.name}/{k}" if k else metric.name: float(v) for k, v in parts.items()}
    return found


class _Decoder:
    """Decodes with shared prefixes where that gives what whole prompts give, else with whole prompts."""

    def __init__(self, model: Any, limits: Limits):
        features = FeatureCache(model)
        self._whole = WholePrompts(model, limits, features)
        self._shared = SharedPrefixes(model, limits, features)
        self._is_checked, self._may_share = False, True

    def decode(
        self, samples: Sequence[Sample], choices: Sequence[Sequence[list[int]]]
    ) -> list[Decoded]:
        decoded = None
        if self._may_share and self._shared.serves(samples):
            decoded = self._shared.decode(samples, choices)
        if decoded is not None and not self._is_checked:
            self._is_checked = True
            self._may_share = self._agrees(samples, decoded)
        if decoded is None or not self._may_share:
            decoded = self._whole.decode(samples, choices)
        return decoded

    def _agrees(self, samples: Sequence[Sample], decoded: Sequence[Decoded]) -> bool:
        whole = WholePrompts(self._whole.model, self._whole.limits).losses(samples[:_CHECKED])
        pairs = zip(whole, (one.losses for one in decoded), strict=False)
        return all(
            math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
            for x, y in pairs
            for a, b in zip(x, y, strict=True)
        )


def score_loader(
    scorer: Scorer, model: Any, loader: Iterable[Sequence[Sample]], device: Any, context: Any
) -> tuple[Scores, list[dict[str, Any]]]:
    """Score a whole split in one process; returns (metrics, items in a fixed order)."""
    scorer.prepare(loader.dataset.items)  # type: ignore[attr-defined]
    scorer.to(device)
    model.eval()
    with context:
        for samples in loader:
            scorer.add(model, samples)
    scorer.items.sort(key=lambda record: str(record["id"]))
    return scorer.compute(), scorer.items


def to_device(batch: Any, device: Any) -> Any:
    """The batch with every tensor of it on `device`; what is in lists stays where it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch
