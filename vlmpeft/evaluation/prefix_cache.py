"""Greedy answers and likelihoods with each picture's prompt computed once.

Questions about one picture begin alike: the template's opening and the image tokens. Their keys and values are
computed once a picture, those of the rest of each question once, and the reference answer, every choice and the
greedy answer all go on from there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vlmpeft.data.batches.encode import PER_TOKEN
from vlmpeft.evaluation.decoding import Decoded, Limits
from vlmpeft.evaluation.token_loss import head_sees_only
from vlmpeft.evaluation.tower_cache import FeatureCache, Pictures, Sample, pictures

_ROWS = 256  # choices in one forward pass
# settings of a base's generation_config under which an answer is not the plain argmax
_NOT_GREEDY = (
    "no_repeat_ngram_size",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
)


@dataclass(frozen=True)
class _Known:
    """Tokens whose keys and values are cached.

    Args:
        cache: of the model, one row a sample.
        mask: (B, T) which of its columns are tokens; the others are filler, also in the middle of a row.
    """

    cache: Any
    mask: Tensor

    def rows(self, index: Tensor) -> _Known:
        """These rows, some perhaps several times; the original is not changed."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(index)
        return _Known(cache, self.mask[index])

    def until(self, length: int) -> _Known:
        """The first columns; a prompt that was trained may stand before them in the cache."""
        later = self.mask.shape[1] - length
        for layer in self.cache.layers:
            kept = layer.keys.shape[-2] - later
            layer.keys, layer.values = layer.keys[..., :kept, :], layer.values[..., :kept, :]
        return _Known(self.cache, self.mask[:, :length])


class SharedPrefixes:
    """As `WholePrompts`, for decoders with ordinary causal attention over one stream of positions.

    Args:
        model: an image-text-to-text model.
        limits: when an answer ends.
        features: of pictures.
    """

    def __init__(self, model: Any, limits: Limits, features: FeatureCache):
        self.model, self.limits, self.features = model, limits, features
        self.device = next(model.parameters()).device
        self._is_plain = _is_plain_decoder(model)

    def serves(self, samples: Sequence[Sample]) -> bool:
        """Whether model and samples are of the kind this is right for."""
        return (
            self._is_plain
            and self.features.serves(samples)
            and not any(key in PER_TOKEN for _, e in samples for key in e.model_inputs)
            and all(encoded.turns[0][0] > 1 for _, encoded in samples)
        )

    def decode(
        self, samples: Sequence[Sample], choices: Sequence[Sequence[list[int]]]
    ) -> list[Decoded] | None:
        """Answer samples; None if the model's features or cache turn out to be of another kind."""
        groups = _groups(samples, getattr(self.model.config, "image_token_id", None))
        known = self._read_prefixes(samples, groups)
        if known is None:
            return None
        known, first, losses = self._read_questions(known, samples, groups)
        likelihoods = self._choices(known, first, choices)
        answers = self._generate(known, first)
        return [
            Decoded(*answer, loss, likelihood)
            for answer, loss, likelihood in zip(answers, losses, likelihoods, strict=True)
        ]

    def _read_prefixes(self, samples: Sequence[Sample], groups: list[_Group]) -> _Known | None:
        """One row a group."""
        images = self.features.inputs([samples[group.members[0]] for group in groups], self.device)
        if images is None:
            return None
        prompts = [samples[group.members[0]][1].input_ids[: group.length] for group in groups]
        tokens, mask = self._padded(prompts, left=True)
        _, known = self._forward(None, tokens, mask, torch.zeros_like(mask).bool(), images)
        if {type(layer).__name__ for layer in known.cache.layers} != {"DynamicLayer"}:
            self._is_plain = False  # sliding windows and recurrent states cannot be cut and padded
            return None
        return known

    def _read_questions(
        self, known: _Known, samples: Sequence[Sample], groups: list[_Group]
    ) -> tuple[_Known, Tensor, list[list[float]]]:
        """(whole prompts, logits (B, V) of the answer's first token, -log p of the references' tokens)."""
        group_of = {member: number for number, g in enumerate(groups) for member in g.members}
        known = known.rows(torch.tensor([group_of[i] for i in range(len(samples))]).to(self.device))
        spans = [(groups[group_of[i]].length, *e.turns[0]) for i, (_, e) in enumerate(samples)]
        ids = [e.input_ids for _, e in samples]
        questions, question_mask = self._padded(
            [row[begin:start] for row, (begin, start, _) in zip(ids, spans, strict=True)], left=True
        )
        targets = [row[start:end] for row, (_, start, end) in zip(ids, spans, strict=True)]
        answers, answer_mask = self._padded([row[:-1] for row in targets], left=False)
        # the last token of a question predicts the first of its answer
        keep = F.pad(answer_mask, (questions.shape[1], 0)).bool()
        keep[:, questions.shape[1] - 1] = True
        tokens = torch.cat([questions, answers], 1)
        mask = torch.cat([question_mask, answer_mask], 1)
        logits, after = self._forward(known, tokens, mask, keep)
        counts = [len(row) for row in targets]
        losses = F.cross_entropy(logits, torch.cat(targets).to(self.device), reduction="none")
        first = torch.tensor([0, *counts[:-1]]).cumsum(0).to(self.device)
        prompts = after.until(known.mask.shape[1] + questions.shape[1])
        return prompts, logits[first], [part.tolist() for part in losses.split(counts)]

    def _choices(
        self, known: _Known, first: Tensor, choices: Sequence[Sequence[list[int]]]
    ) -> list[list[float]]:
        """Log p of each choice, sample by sample."""
        pairs = [(row, ids) for row, options in enumerate(choices) for ids in options]
        flat: list[float] = []
        for start in range(0, len(pairs), _ROWS):
            flat += self._score_answers(known, first, pairs[start : start + _ROWS])
        waiting = iter(flat)
        return [[next(waiting) for _ in options] for options in choices]

    def _score_answers(
        self, known: _Known, first: Tensor, pairs: Sequence[tuple[int, list[int]]]
    ) -> list[float]:
        rows = torch.tensor([row for row, _ in pairs]).to(self.device)
        ids = [torch.tensor(ids) for _, ids in pairs]
        heads = torch.stack([row[0] for row in ids]).to(self.device)
        total = first[rows].log_softmax(-1).gather(1, heads[:, None])[:, 0]
        if max(map(len, ids)) > 1:
            tokens, mask = self._padded([row[:-1] for row in ids], left=False)
            logits, _ = self._forward(known.rows(rows), tokens, mask, mask.bool())
            rest = torch.cat([row[1:] for row in ids]).to(self.device)
            found = -F.cross_entropy(logits, rest, reduction="none")
            owner = torch.repeat_interleave(mask.sum(1))
            total = total.index_add(0, owner, found)
        return total.tolist()

    def _generate(self, known: _Known, logits: Tensor) -> list[tuple[list[int], list[float]]]:
        """Greedy answers; rows that are done are taken out once they are half of the batch."""
        answers: list[tuple[list[int], list[float]]] = [([], []) for _ in range(len(logits))]
        rows = list(range(len(logits)))
        going = dict.fromkeys(rows)
        for step in range(self.limits.max_new_tokens):
            best, tokens = logits.log_softmax(-1).max(-1)
            for row, token, value in zip(rows, tokens.tolist(), best.tolist(), strict=True):
                if row in going:
                    answers[row][0].append(token)
                    answers[row][1].append(value)
                    if token in self.limits.end_ids:
                        del going[row]
            if not going or step + 1 == self.limits.max_new_tokens:
                break
            if 2 * len(going) <= len(rows):
                kept = torch.tensor([n for n, row in enumerate(rows) if row in going])
                known, tokens = known.rows(kept.to(self.device)), tokens[kept.to(self.device)]
                rows = list(going)
            one = torch.ones_like(tokens)[:, None]
            logits, known = self._forward(known, tokens[:, None], one, one.bool())
        return answers

    def _forward(
        self, known: _Known | None, tokens: Tensor, mask: Tensor, keep: Tensor, images: Any = None
    ) -> tuple[Tensor, _Known]:
        """(logits (N, V) fp32 at `keep` (B, T), what is known with the new tokens)."""
        before = tokens[:, :0] if known is None else known.mask
        whole = torch.cat([before, mask], 1)
        positions = (whole.cumsum(1) - 1).clamp(min=0)[:, before.shape[1] :]
        with torch.no_grad(), head_sees_only(self.model.get_output_embeddings(), keep):
            output = self.model(
                input_ids=tokens,
                attention_mask=whole,
                position_ids=positions,
                past_key_values=None if known is None else known.cache,
                use_cache=True,
                **(images or {}),
            )
        return output.logits.squeeze(0).float(), _Known(output.past_key_values, whole)

    def _padded(self, rows: Sequence[Tensor], left: bool) -> tuple[Tensor, Tensor]:
        """(tokens, mask), each (B, longest)."""
        side = "left" if left else "right"
        tokens = pad_sequence(list(rows), True, self.limits.pad_id, side)
        mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, side)
        return tokens.to(self.device), mask.to(self.device)


@dataclass(frozen=True)
class _Group:
    """Samples whose prompts begin alike.

    Args:
        members: positions of the samples.
        length: tokens they share, all image tokens among them; at least one token of each prompt is left.
    """

    members: tuple[int, ...]
    length: int


def _groups(samples: Sequence[Sample], image_token_id: int | None) -> list[_Group]:
    alike: dict[Pictures, list[int]] = {}
    for number, (item, _) in enumerate(samples):
        alike.setdefault(pictures(item), []).append(number)
    groups = []
    for members in alike.values():
        prompts = [samples[i][1].input_ids[: samples[i][1].turns[0][0]] for i in members]
        length = _common(prompts)
        outside = [
            p
            for p in prompts
            if image_token_id is None or bool((p[length:] == image_token_id).any())
        ]
        if length and not outside:
            groups.append(_Group(tuple(members), length))
        else:
            groups += [_Group((i,), len(p) - 1) for i, p in zip(members, prompts, strict=True)]
    return groups


def _common(prompts: Sequence[Tensor]) -> int:
    """How many tokens the prompts share at their start, short of the last of the shortest."""
    shortest = min(map(len, prompts)) - 1
    equal = torch.ones(shortest, dtype=torch.bool)
    for prompt in prompts[1:]:
        equal &= prompt[:shortest] == prompts[0][:shortest]
    return shortest if bool(equal.all()) else int(equal.int().argmin())


def _is_plain_decoder(model: Any) -> bool:
    settings = model.generation_config
    return (
        not model.config.is_encoder_decoder
        and not hasattr(model.base_model, "get_rope_index")  # several streams of positions
        and (getattr(settings, "repetition_penalty", None) or 1.0) == 1.0
        and not any(getattr(settings, name, None) for name in _NOT_GREEDY)
    )
