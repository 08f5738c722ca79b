"""Greedy answers to scored items, and what they are worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from vlmpeft.data.encode import IGNORE
from vlmpeft.loss import token_losses
from vlmpeft.metrics import TextMetric


class _BestLogProbability:
    """A logits processor that notes the log-probability of the token greedy decoding takes."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores.float().log_softmax(-1).amax(-1))
        return scores


class Scorer:
    """Scores batches of items with one model and sums up.

    Args:
        tokenizer: of the base.
        metrics: what each answer is scored by.
        max_new_tokens: length limit of an answer, end token included; a longer one counts as wrong.
        end_ids: tokens that end an answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        metrics: Sequence[TextMetric],
        max_new_tokens: int,
        end_ids: Sequence[int],
    ):
        self.tokenizer, self.metrics = tokenizer, list(metrics)
        self.max_new_tokens, self.end_ids = max_new_tokens, sorted(set(end_ids))
        self.loss = MeanMetric()
        self.items: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget every item."""
        self.items = []
        for metric in (*self.metrics, self.loss):
            metric.reset()

    def to(self, device: torch.device) -> None:
        """Move the metric states, so that they can be reduced over ranks."""
        for metric in (*self.metrics, self.loss):
            metric.to(device)

    @torch.no_grad()
    def add(self, model: Any, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Answer and score one batch of `scoring_loader`; returns one plain record an item."""
        labels = batch["full"]["labels"]
        losses = token_losses(model, batch["full"])
        counts = (labels[:, 1:] != IGNORE).sum(-1)
        answers = self._generate(model, batch["prompts"])
        records = []
        for item, answer, loss in zip(
            batch["items"], answers, losses.split(counts.tolist()), strict=True
        ):
            finished = answer["finish_reason"] == "stop"
            scores = {
                metric.name: metric.score_item(answer["generated"], item.expected, finished)
                for metric in self.metrics
            }
            records.append(_record(item) | answer | {"loss": loss.mean().item(), "scores": scores})
        self._update(records, losses)
        return records

    def _update(self, records: list[dict[str, Any]], losses: Tensor) -> None:
        for metric in self.metrics:
            metric.update([record["scores"][metric.name] for record in records])
        self.loss.update(losses)
        self.items += records

    def compute(self) -> dict[str, float]:
        """Metric name -> value over all items so far; `loss` is per supervised token, in nats."""
        scores = {metric.name: metric.compute().item() for metric in self.metrics}
        return scores | {"loss": self.loss.compute().item()}

    def _generate(self, model: Any, prompts: dict[str, Tensor]) -> list[dict[str, Any]]:
        from transformers import LogitsProcessorList  # seconds, which --help need not wait for

        recorder = _BestLogProbability()
        width = prompts["input_ids"].shape[1]
        output = model.generate(
            **prompts,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=self.end_ids,
            pad_token_id=self._pad_id(),
            logits_processor=LogitsProcessorList([recorder]),
        )[:, width:]
        log_probabilities = torch.stack(recorder.steps, dim=1)  # (B, steps)
        return [
            self._answer(ids, row)
            for ids, row in zip(output.tolist(), log_probabilities.tolist(), strict=True)
        ]

    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def _answer(self, ids: list[int], log_probabilities: list[float]) -> dict[str, Any]:
        stops = [position for position, token in enumerate(ids) if token in self.end_ids]
        length = stops[0] + 1 if stops else len(ids)
        return {
            "generated": self.tokenizer.decode(ids[:length], skip_special_tokens=True).strip(),
            "finish_reason": "stop" if stops else "length",
            "token_log_probabilities": [round(value, 5) for value in log_probabilities[:length]],
        }


def _record(item: Any) -> dict[str, Any]:
    images = [image.source[:200] for image in item.conversation.images]
    known = {"id": item.id, "image": images, "prompt": item.prompt, "expected": item.expected}
    return dict(item.conversation.extra) | known


def score_loader(
    scorer: Scorer,
    model: Any,
    loader: Iterable[dict[str, Any]],
    device: Any,
    context: AbstractContextManager,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Score a whole split in one process; returns (metrics, items in a fixed order)."""
    scorer.reset()
    scorer.to(device)
    model.eval()
    with context:
        for batch in loader:
            scorer.add(model, to_device(batch, device))
    items = sorted(scorer.items, key=lambda record: str(record["id"]))
    return scorer.compute(), items


def to_device(batch: Any, device: Any) -> Any:
    """The batch with every tensor on `device`; items stay what they are."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch
