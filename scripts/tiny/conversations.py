"""What the embedded base is trained on: drawn scenes and endless fresh conversations about them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiny.architecture import IMAGE_TOKENS, SPECIAL
from vlmpeft.data.batches.encode import IGNORE
from vlmpeft.data.workbench.scene import Scene, draw_scene, random_scene
from vlmpeft.data.workbench.source import SOURCE, Question

# Where there is one part alone, to say where it is needs no search: searching is learnt from there.
OCCUPANCIES = (0.4, 0.78, 0.78, 0.78)
SYSTEM_PROMPTS = ("answer briefly.", "you are a bench assistant.")
TEXT_KINDS = ("told", "copy", "json")


@dataclass(frozen=True)
class Mixture:
    """Kinds of question with weights, the numbers of turns to draw from, the share without a picture."""

    kinds: dict[str, float]
    turns: tuple[int, ...]
    text_only: float = 0.0


SOURCE_MIXTURE = Mixture({kind: weight for kind, (_, weight) in SOURCE.items()}, (1, 2, 3, 4), 0.1)


def corpus(seed: int, questions: int = 20_000) -> Iterator[str]:
    """Text to train the tokenizer on: prompts and answers of the source task."""
    rng = random.Random(f"corpus {seed}")
    for _ in range(questions):
        question = ask(random_scene(rng, "train"), rng, SOURCE_MIXTURE.kinds)
        yield question.prompt
        yield question.answer


def ask(scene: Scene, rng: random.Random, kinds: dict[str, float]) -> Question:
    """A question of random kind; some kinds (place) do not fit every scene."""
    while True:
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        if question := SOURCE[kind][0](scene, rng):
            return question


def draw_pool(seed: int, count: int) -> tuple[list[Scene], Tensor]:
    """`count` training scenes and their pictures, uint8 (N, 3, SIDE, SIDE)."""
    with ProcessPoolExecutor(2) as pool:
        chunks = list(pool.map(_draw, [(f"pool {seed} {i}", count // 8) for i in range(8)]))
    scenes = [scene for chunk, _ in chunks for scene in chunk]
    pixels = torch.from_numpy(np.concatenate([pixels for _, pixels in chunks]))
    return scenes, pixels.permute(0, 3, 1, 2).contiguous()


def _draw(args: tuple[str, int]) -> tuple[list[Scene], np.ndarray]:
    seed, count = args
    rng = random.Random(seed)
    scenes = [random_scene(rng, "train", rng.choice(OCCUPANCIES)) for _ in range(count)]
    return scenes, np.stack([np.asarray(draw_scene(scene)) for scene in scenes])


def normalise(pixels: Tensor) -> Tensor:
    """What the image processor does to uint8 pictures of the right size."""
    return (pixels.float() / 255 - 0.5) / 0.5


class Conversations:
    """Endless padded batches, in buckets of equal length.

    Args:
        tokenizer: of the base.
        scenes: N training scenes.
        pixels: their pictures, uint8 (N, 3, SIDE, SIDE).
        seed: of the questions.
        batch_size: conversations a batch.
    """

    def __init__(
        self, tokenizer: Any, scenes: list[Scene], pixels: Tensor, *, seed: int, batch_size: int
    ):
        self.tokenizer, self.scenes, self.pixels = tokenizer, scenes, pixels
        self.batch_size, self.mixture = batch_size, SOURCE_MIXTURE
        self.rng = random.Random(f"conversations {seed}")
        self.ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
        self._cache: dict[str, list[int]] = {}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        size = self.batch_size
        while True:
            samples = [self._conversation() for _ in range(8 * size)]
            samples.sort(key=lambda sample: len(sample[0]))
            batches = [samples[i : i + size] for i in range(0, len(samples), size)]
            self.rng.shuffle(batches)
            yield from map(self._collate, batches)

    def _conversation(self) -> tuple[list[int], list[int], int | None]:
        """(ids, labels, index of the picture or None), as the chat template would render it."""
        index = self.rng.randrange(len(self.scenes))
        questions = self._questions(self.scenes[index])
        has_picture = any(question.about_picture for question in questions)
        ids: list[int] = []
        if self.rng.random() < 0.05:
            ids += self._turn("<|system|>", self.rng.choice(SYSTEM_PROMPTS))
        labels = [IGNORE] * len(ids)
        for number, question in enumerate(questions):
            picture = IMAGE_TOKENS if has_picture and number == 0 else 0
            prompt = self._turn("<|user|>", question.prompt, picture)
            answer = self._turn("<|assistant|>", question.answer)
            ids += prompt + answer
            labels += [IGNORE] * (len(prompt) + 1) + answer[1:]
        return ids, labels, index if has_picture else None

    def _questions(self, scene: Scene) -> list[Question]:
        if self.rng.random() < self.mixture.text_only:
            return [ask(scene, self.rng, dict.fromkeys(TEXT_KINDS, 1.0))]
        turns = self.rng.choice(self.mixture.turns)
        return [ask(scene, self.rng, self.mixture.kinds) for _ in range(turns)]

    def _turn(self, role: str, text: str, picture: int = 0) -> list[int]:
        words = self.tokenizer(text, add_special_tokens=False).input_ids
        return [self.ids[role], *[self.ids["<image>"]] * picture, *words, self.ids["<|end|>"]]

    def _collate(self, samples: list[tuple[list[int], list[int], int | None]]) -> dict[str, Tensor]:
        width = max(len(ids) for ids, _, _ in samples)

        def padded(rows: list[list[int]], value: int) -> Tensor:
            return torch.tensor([row + [value] * (width - len(row)) for row in rows])

        batch = {
            "input_ids": padded([ids for ids, _, _ in samples], self.ids["<|pad|>"]),
            "labels": padded([labels for _, labels, _ in samples], IGNORE),
            "attention_mask": padded([[1] * len(ids) for ids, _, _ in samples], 0),
        }
        if index := [i for _, _, i in samples if i is not None]:
            batch["pixel_values"] = normalise(self.pixels[index])
        return batch
