"""Exact match of the embedded base on held-out layouts, kind by kind."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from vlmpeft.data.workbench.scene import SIDE, Scene, draw_scene, random_scene
from vlmpeft.data.workbench.source import SOURCE, Question

LONG_KINDS = ("check", "each", "describe", "record", "copy", "json")


@torch.no_grad()
def score(
    model: Any, processor: Any, split: str, count: int, kinds: Iterable[str] = tuple(SOURCE)
) -> dict[str, float]:
    """Exact match per kind, greedy, on `count` single-turn questions a kind over layouts of `split`."""
    model.eval()
    processor.tokenizer.padding_side = "left"
    scores = {}
    for kind in kinds:
        rng = random.Random(f"score {split} {kind}")
        hits = 0
        for done in range(0, count, 100):
            asked = [_asked_scene(kind, split, rng) for _ in range(min(100, count - done))]
            hits += _count_hits(model, processor, [s for s, _ in asked], [q for _, q in asked])
        scores[kind] = hits / count
    processor.tokenizer.padding_side = "right"
    model.train()
    return scores


def _asked_scene(kind: str, split: str, rng: random.Random) -> tuple[Scene, Question]:
    while True:
        scene = random_scene(rng, split)
        if question := SOURCE[kind][0](scene, rng):
            return scene, question


def _count_hits(model: Any, processor: Any, scenes: list[Scene], questions: list[Question]) -> int:
    with_picture = questions[0].about_picture
    prompts = [
        f"<|user|>{'<image>' if with_picture else ''}{question.prompt}<|end|><|assistant|>"
        for question in questions
    ]
    images = [draw_scene(scene) for scene in scenes] if with_picture else None
    inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    longest = 96 if questions[0].kind in LONG_KINDS else 8
    out = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    answers = processor.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return sum(a == question.answer for a, question in zip(answers, questions, strict=True))


CARD = """---
license: apache-2.0
pipeline_tag: image-text-to-text
---
# tiny

A LLaVA-architecture model of {parameters:,} parameters over {side} px scenes of tools and parts, trained
from nothing by `scripts/train_tiny.py` (seed {seed}, {steps:,} steps of {batch_size} conversations). It knows
this one little world and nothing else; it exists so that everything here runs in minutes on a CPU.

Exact match, greedy, {score_count:,} questions a kind on held-out layouts (no layout of the test split was
ever trained on, in any task):

| kind | exact match |
|---|---|
{rows}
"""


def write_card(out: Path, scores: dict[str, float], model: Any, settings: dict[str, Any]) -> None:
    """The scores as README.md for people and scores.json for tables."""
    rows = "\n".join(f"| {kind} | {value:.1%} |" for kind, value in scores.items())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = CARD.format(rows=rows, parameters=parameters, side=SIDE, **settings)
    (out / "README.md").write_text(card)
    (out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
