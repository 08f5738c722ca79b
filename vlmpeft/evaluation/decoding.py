"""Greedy answers and likelihoods of given answers, the plain way: every prompt as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vlmpeft.data.batches.collate import collate, collate_prompts
from vlmpeft.data.batches.encode import IGNORE
from vlmpeft.evaluation.token_loss import has_encoder, token_losses
from vlmpeft.evaluation.tower_cache import FeatureCache, Sample


@dataclass(frozen=True)
class Decoded:
    """What the model says of one item.

    Args:
        ids: the greedy answer up to and with its end token.
        log_probabilities: of each of `ids`, nats.
        losses: -log p of each token of the reference answer, nats.
        choices: log p of each choice as the whole answer, nats.
    """

    ids: list[int]
    log_probabilities: list[float]
    losses: list[float]
    choices: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """When an answer ends.

    Args:
        max_new_tokens: length limit, end token included.
        end_ids: tokens that end it.
        pad_id: filler.
    """

    max_new_tokens: int
    end_ids: tuple[int, ...]
    pad_id: int


class AnswerEnds(Protocol):
    """What is remembered of when answers end; an adapter's manifest has it."""

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def end_ids(self) -> Sequence[int]: ...


def limits_of(ends: AnswerEnds, tokenizer: Any) -> Limits:
    """The limits of a tokenizer's model."""
    return Limits(ends.max_new_tokens, tuple(ends.end_ids), find_pad_id(tokenizer))


def find_end_ids(model: Any, tokenizer: Any, answered: Iterable[int]) -> list[int]:
    """What ends an answer: what the base says, and what ended the answers it learnt from."""
    of_base = model.generation_config.eos_token_id
    known = of_base if isinstance(of_base, list) else [of_base]
    return sorted({*known, *answered, tokenizer.eos_token_id} - {None})


def find_pad_id(tokenizer: Any) -> int:
    """The tokenizer's filler, else its end token."""
    pad = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


class _BestLogProbability:
    """A logits processor that notes the log-probability of the token greedy decoding takes."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores.float().log_softmax(-1).amax(-1))
        return scores


class WholePrompts:
    """Answers by `generate`, likelihoods by whole conversations; works for every model.

    Args:
        model: an image-text-to-text model.
        limits: when an answer ends.
        features: of pictures; None lets the model look at each picture every time.
    """

    def __init__(self, model: Any, limits: Limits, features: FeatureCache | None = None):
        self.model, self.limits, self.features = model, limits, features

    def decode(
        self, samples: Sequence[Sample], choices: Sequence[Sequence[list[int]]]
    ) -> list[Decoded]:
        """Answer samples; `choices` are token ids of possible answers, sample by sample."""
        losses = self.losses(samples)
        answers = self._generate(samples)
        likelihoods = [self._choices(s, c) for s, c in zip(samples, choices, strict=True)]
        return [
            Decoded(ids, log_probabilities, loss, likelihood)
            for (ids, log_probabilities), loss, likelihood in zip(
                answers, losses, likelihoods, strict=True
            )
        ]

    def losses(self, samples: Sequence[Sample]) -> list[list[float]]:
        """-log p of every supervised token, sample by sample."""
        batch = self._batch(samples, collate)
        counts = (batch["labels"][:, 1:] != IGNORE).sum(-1).tolist()
        return [part.tolist() for part in token_losses(self.model, batch).split(counts)]

    def _batch(self, samples: Sequence[Sample], collate_fn: Any) -> dict[str, Any]:
        """Tensors on the model's device, with features in place of pixels where possible."""
        device = next(self.model.parameters()).device
        encoded = [e for _, e in samples]
        if self.features and self.features.serves(samples):
            found = self.features.inputs(samples, device)
            if found is not None:
                bare = [replace(e, model_inputs=_without_pixels(e.model_inputs)) for e in encoded]
                return _to(collate_fn(bare, self.limits.pad_id), device) | found
        return _to(collate_fn(encoded, self.limits.pad_id), device)

    def generate(self, samples: Sequence[Sample], **kwargs: Any) -> list[list[int]]:
        """Greedy answers up to and with their end token, sample by sample.

        Args:
            samples: each is answered from what stands before its first supervised turn.
            kwargs: more for the model's `generate`, e.g. a streamer.
        """
        apart = has_encoder(self.model)  # the encoder's positions count from the left
        side: Literal["left", "right"] = "right" if apart else "left"
        prompts = self._batch(samples, partial(collate_prompts, side=side))
        output = self.model.generate(
            **prompts,
            max_new_tokens=self.limits.max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=list(self.limits.end_ids),
            pad_token_id=self.limits.pad_id,
            **kwargs,
        )[:, 1 if apart else prompts["input_ids"].shape[1] :]
        return [self._cut(ids) for ids in output.tolist()]

    def _generate(self, samples: Sequence[Sample]) -> list[tuple[list[int], list[float]]]:
        from transformers import LogitsProcessorList  # seconds, which --help need not wait for

        recorder = _BestLogProbability()
        answers = self.generate(samples, logits_processor=LogitsProcessorList([recorder]))
        if recorder.steps:
            rows = torch.stack(recorder.steps, dim=1).tolist()  # (B, steps)
        else:  # Janus's `generate` drops logits processors
            given = [
                (item, encoded.with_answer(*encoded.turns[0], ids))
                for (item, encoded), ids in zip(samples, answers, strict=True)
            ]
            rows = [[-loss for loss in losses] for losses in self.losses(given)]
        return [(ids, row[: len(ids)]) for ids, row in zip(answers, rows, strict=True)]

    def _cut(self, ids: list[int]) -> list[int]:
        length = next((n + 1 for n, i in enumerate(ids) if i in self.limits.end_ids), len(ids))
        return ids[:length]

    def _choices(self, sample: Sample, choices: Sequence[list[int]]) -> list[float]:
        if not choices:
            return []
        item, encoded = sample
        start, end = encoded.turns[0]
        rows = [(item, encoded.with_answer(start, end, ids)) for ids in choices]
        return [-sum(losses) for losses in self.losses(rows)]


def _without_pixels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Grids and token types stay: positions are computed from them."""
    return {key: value for key, value in inputs.items() if not key.startswith("pixel_")}


def _to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
