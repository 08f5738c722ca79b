"""Training of the embedded base: a warm-up of its tower, then everything on conversations."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny.conversations import SOURCE_MIXTURE, Mixture, normalise
from vlmpeft.data.batches.encode import IGNORE
from vlmpeft.data.workbench.scene import COLOURS, NAMES, PLACES, Part, Scene


def warm_up_eyes(
    model: Any, tokenizer: Any, scenes: list[Scene], pixels: Tensor, steps: int
) -> None:
    """Teach tower and projector to say, at every patch, the words of the patch's cell.

    The target of a patch is the sum of the token embeddings of its cell's place, colour and name: to the
    language model a picture then is a text of sixteen words, and what it learns about words (copying,
    looking up, comparing) holds for what it sees.
    """
    embeddings = model.get_input_embeddings().weight.detach()
    words = _word_sums(scenes, embeddings, tokenizer)
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    optimizer = torch.optim.AdamW([p for m in parts for p in m.parameters()], lr=2e-3, fused=True)
    for step in range(steps):
        _set_rate(optimizer, min(1, (step + 1) / 100) * max(0.02, 1 - step / steps))
        index = torch.randint(len(scenes), (128,))
        seen = model.get_image_features(normalise(pixels[index]))
        loss = F.mse_loss(_stacked(seen), words[index]) / embeddings.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"eyes {step + 1}: {loss.item():.4f} of the variance of a word", flush=True)


def _stacked(features: Any) -> Tensor:
    """Image features (B, P, D), however this version of transformers returns them."""
    features = getattr(features, "pooler_output", features)
    return features if isinstance(features, Tensor) else torch.stack(list(features))


def _word_sums(scenes: list[Scene], embeddings: Tensor, tokenizer: Any) -> Tensor:
    """(N, 16, D): of each patch in reading order, the summed embeddings of its cell's words."""

    def embed(*words: str) -> Tensor:
        ids = tokenizer(list(words), add_special_tokens=False).input_ids
        assert all(len(pieces) == 1 for pieces in ids), f"not every one of {words} is one token"
        return embeddings[[pieces[0] for pieces in ids]].sum(0)

    vocabulary = {word: embed(word) for word in (*PLACES, *COLOURS, *NAMES, "nothing")}

    def cell(place: str, part: Part | None) -> Tensor:
        what = (part.colour, part.name) if part else ("nothing",)
        return torch.stack([vocabulary[word] for word in (place, *what)]).sum(0)

    cells = [torch.stack([cell(*c) for c in zip(PLACES, s.parts, strict=True)]) for s in scenes]
    grid = torch.stack(cells).view(len(scenes), 2, 2, -1)
    return grid.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)


@dataclass(frozen=True)
class Stage:
    """A stretch of training on one mixture, with optimizers and a schedule of its own."""

    mixture: Mixture
    steps: int
    rate: float
    muon_rate: float


STAGES = (
    # Reading, writing and looking up. The rate goes down at the end: held, the same 700 steps leave twice
    # the loss.
    Stage(
        Mixture(
            {
                "name": 12,
                "colour": 10,
                "count": 10,
                "place": 14,
                "yes_no": 10,
                "check": 4,
                "each": 4,
                "describe": 8,
                "record": 5,
                "told": 8,
                "copy": 5,
                "json": 6,
            },
            turns=(1, 2, 3, 4),
            text_only=0.1,
        ),
        steps=700,
        rate=2e-3,
        muon_rate=0.02,
    ),
    # Comparing and searching, which one-word answers alone teach: among long answers they are a few percent
    # of the supervised tokens and stay at chance, and so they do for 400 steps at Muon's usual rate of 0.02.
    Stage(
        Mixture(
            {"name": 0.1, "colour": 0.1, "count": 0.15, "place": 0.35, "yes_no": 0.3},
            turns=(2, 3, 4),
        ),
        steps=1000,
        rate=5e-4,
        muon_rate=0.004,
    ),
    Stage(SOURCE_MIXTURE, steps=2000, rate=1e-3, muon_rate=0.006),
)


def train(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    stage: Stage,
    report: Callable[[], dict[str, float]],
) -> None:
    """One stage: warm up for 200 steps, hold, go down linearly over the last 40 %."""
    optimizers = build_optimizers(model, stage.rate, stage.muon_rate)
    start, mean = time.time(), 0.0
    for step, batch in enumerate(islice(batches, stage.steps)):
        factor = min(1, (step + 1) / 200, (1 - step / stage.steps) / 0.4 + 0.01)
        loss = _step(model, optimizers, batch, factor)
        mean += (loss - mean) / min(step + 1, 50)
        if (step + 1) % 100 == 0:
            print(f"{step + 1} loss {mean:.4f} {time.time() - start:.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == stage.steps:
            print(json.dumps(report()), flush=True)


def build_optimizers(
    model: nn.Module, rate: float, muon_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers (Jordan et al. 2024), AdamW for the rest.

    After 500 steps of the same stream AdamW alone stood at a loss of 1.20, Muon at 0.80. Token embeddings
    move ten times slower, so that what the tower has been taught to say keeps its meaning.
    """
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "rest": []}
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        kind = "embeddings" if "embed_tokens" in name else "matrices" if inside else "rest"
        groups[kind].append(parameter)
    adamw = torch.optim.AdamW(
        [
            {"params": groups["rest"]},
            {"params": groups["embeddings"], "lr": rate / 10, "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    return [torch.optim.Muon(groups["matrices"], lr=muon_rate, weight_decay=0.01), adamw]


def _set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak", group["lr"]) * factor


def _step(
    model: Any, optimizers: list[torch.optim.Optimizer], batch: dict[str, Tensor], factor: float
) -> float:
    labels = batch.pop("labels")
    keep = labels[:, 1:] != IGNORE
    hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1][keep]
    loss = F.cross_entropy(model.lm_head(hidden), labels[:, 1:][keep])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        _set_rate(optimizer, factor)
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()
