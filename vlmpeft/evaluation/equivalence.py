"""Whether two forms of one model answer alike, measured on real samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlmpeft.base.loading import autocast
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.dataset import Item, scored_items
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.data.formats.sources import read_conversations
from vlmpeft.data.workbench.build import cached_task
from vlmpeft.data.workbench.reference import PREFIX
from vlmpeft.evaluation.decoding import (
    AnswerEnds,
    Limits,
    WholePrompts,
    find_end_ids,
    find_pad_id,
    limits_of,
)
from vlmpeft.evaluation.token_loss import supervised_logits
from vlmpeft.evaluation.tower_cache import Sample
from vlmpeft.runtime.errors import UserError

BUILT_IN = f"{PREFIX}format"
# largest |delta logits| by the width of the weights that were written: what rounding alone has been seen to do, times five
TOLERANCE = {"fp32": 5e-3, "fp16": 0.1, "bf16": 0.5}
_MAX_NEW_TOKENS = 64  # of an adapter that was saved without a limit


@dataclass(frozen=True)
class Answers:
    """What a model says to the samples.

    Args:
        logits: a sample, fp32 (N, V) at its N supervised positions.
        targets: a sample, (N,) the reference answer's tokens.
        texts: greedy answers.
        expected: reference answers.
    """

    logits: list[Tensor]
    targets: list[Tensor]
    texts: list[str]
    expected: list[str]

    @property
    def loss(self) -> float:
        """-log p of the reference answers, nats a token."""
        return F.cross_entropy(torch.cat(self.logits), torch.cat(self.targets)).item()

    @property
    def exact_match(self) -> float:
        """Share of greedy answers that are the reference answer, of 1."""
        pairs = zip(self.texts, self.expected, strict=True)
        return sum(text == expected.strip() for text, expected in pairs) / len(self.texts)


@dataclass(frozen=True)
class Difference:
    """How far one model's answers are from another's.

    Args:
        max_logit: largest |delta logits| over supervised positions and the vocabulary.
        mean_kl: KL(reference || other), nats, mean over supervised positions.
        argmax_agreement: share of supervised positions with the same most likely token, of 1.
        text_agreement: share of samples with the same greedy text, of 1.
    """

    max_logit: float
    mean_kl: float
    argmax_agreement: float
    text_agreement: float


@dataclass(frozen=True)
class Trial:
    """Samples and the limits of answers to them.

    Args:
        samples: encoded, each with one supervised answer.
        tokenizer: turns answers into text.
        limits: when an answer ends.
    """

    samples: list[Sample]
    tokenizer: Any
    limits: Limits

    @torch.no_grad()
    def answers(self, model: Any, samples: Sequence[Sample] | None = None) -> Answers:
        """Sample by sample, so that padding has no part in it."""
        chosen = self.samples if samples is None else list(samples)
        device = next(model.parameters()).device
        pairs, texts = [], []
        with autocast(model.eval()):
            for item, encoded in chosen:
                batch = collate([encoded], self.limits.pad_id)
                batch = {key: value.to(device) for key, value in batch.items()}
                logits, targets = supervised_logits(model, batch)
                pairs.append((logits.float().cpu(), targets.cpu()))
                (ids,) = WholePrompts(model, self.limits).generate([(item, encoded)])
                texts.append(self.tokenizer.decode(ids, skip_special_tokens=True).strip())
        expected = [item.expected for item, _ in chosen]
        return Answers([p[0] for p in pairs], [p[1] for p in pairs], texts, expected)


def make_trial(
    model: Any, processor: Any, decoding: AnswerEnds | None, samples: list[Sample]
) -> Trial:
    """A trial whose answers end as the adapter's scored answers did.

    Args:
        model: the base, for what ends its answers.
        processor: that encoded the samples.
        decoding: of the adapter's manifest.
        samples: encoded.
    """
    tokenizer = processor.tokenizer
    if decoding:
        return Trial(samples, tokenizer, limits_of(decoding, tokenizer))
    last = [int(encoded.input_ids[encoded.turns[0][1] - 1]) for _, encoded in samples]
    ends = tuple(find_end_ids(model, tokenizer, last))
    return Trial(samples, tokenizer, Limits(_MAX_NEW_TOKENS, ends, find_pad_id(tokenizer)))


def read_items(data: str | None, image_dir: str | None, number: int) -> list[Item]:
    """Questions with answers, spread evenly over a data set.

    Args:
        data: a file of conversations; None is the built-in task.
        image_dir: what its image paths are relative to.
        number: how many.

    Raises:
        UserError: a record that cannot be used, or no answer in it.
    """

    def refuse(error: UserError) -> None:
        raise error

    path = str(cached_task(BUILT_IN) / "val.json") if data is None else data
    items = scored_items(read_conversations(path, image_dir, refuse, split="val"))
    if not items:
        raise UserError(f"data file {path} holds no answer to compare models by")
    number = min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def encode_items(items: Sequence[Item], encoder: Encoder) -> list[Sample]:
    """Samples, each with the scored answer alone supervised."""
    return [(item, encoder.encode(item.conversation, item.turn)) for item in items]


def same_encoding(first: Sequence[Sample], second: Sequence[Sample]) -> bool:
    """Whether two processors make the same tokens and pictures of the same items."""

    def alike(a: Any, b: Any) -> bool:
        keys = a.model_inputs.keys()
        return (
            torch.equal(a.input_ids, b.input_ids)
            and keys == b.model_inputs.keys()
            and all(torch.equal(a.model_inputs[k], b.model_inputs[k]) for k in keys)
        )

    return all(alike(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


def compare(reference: Answers, other: Answers) -> Difference:
    """The four measures; `reference` is p of the KL."""
    ours, theirs = torch.cat(reference.logits), torch.cat(other.logits)
    p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
    terms = torch.where(p.isneginf(), torch.zeros_like(p), p.exp() * (p - q))
    off = torch.where(ours == theirs, torch.zeros_like(ours), (ours - theirs).abs())
    texts = [a == b for a, b in zip(reference.texts, other.texts, strict=True)]
    return Difference(
        off.max().item(),
        terms.sum(-1).mean().clamp(min=0).item(),
        (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item(),
        sum(texts) / len(texts),
    )
