"""The tasks of the workbench by name, and how far each is from the source task."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlmpeft.data.workbench.format import format_questions, format_scene_questions
from vlmpeft.data.workbench.gauge import GAUGE, draw_panel, random_panel
from vlmpeft.data.workbench.scene import draw_scene, random_scene
from vlmpeft.data.workbench.source import SOURCE, SOURCE_PICTURES, Ask, Question
from vlmpeft.data.workbench.style import STYLE, draw_styled, random_styled_scene
from vlmpeft.data.workbench.trade import PAINTS, STOCK

FULL_SHIFT = 1.0


@dataclass(frozen=True)
class Task:
    """A task of the workbench.

    Args:
        questions: kind -> the question.
        weights: kind -> how often it is asked, by chance; None asks the kinds in turns.
        train: conversations of the training split.
        val: of the validation split.
        test: of the test split.
        imagine: (random state, split) -> a scene that belongs to the split.
        draw: the picture of a scene.
    """

    questions: Mapping[str, Ask]
    weights: Mapping[str, float] | None = None
    train: int = 1600
    val: int = 200
    test: int = 400
    imagine: Callable[[random.Random, str], Any] = random_scene
    draw: Callable[[Any], Image.Image] = draw_scene

    @classmethod
    def by_chance(cls, weighted: Mapping[str, tuple[Ask, float]], train: int = 1600) -> Task:
        """Of kind -> (the question, how often it is asked)."""
        questions = {kind: ask for kind, (ask, _) in weighted.items()}
        return cls(questions, {kind: weight for kind, (_, weight) in weighted.items()}, train)

    def example(self, rng: random.Random, split: str, index: int) -> tuple[Question, Any]:
        """The question of one conversation, and the scene that it is about."""
        kinds = list(self.questions)
        while True:
            scene = self.imagine(rng, split)
            kind = kinds[index % len(kinds)]
            if self.weights:
                kind = rng.choices(kinds, [self.weights[kind] for kind in kinds])[0]
            if question := self.questions[kind](scene, rng):
                return question, scene


def _format(shift: float) -> Task:
    return Task.by_chance(format_questions(shift))


def _format_scene(shift: float) -> Task:
    return Task.by_chance(format_scene_questions(shift))


def _style(shift: float) -> Task:
    return Task(STYLE, imagine=random_styled_scene, draw=lambda scene: draw_styled(scene, shift))


def _gauge(shift: float) -> Task:
    return Task(GAUGE, imagine=lambda rng, split: random_panel(rng, split, shift), draw=draw_panel)


# name -> the task at a size of its shift, from 0 to 1
SHIFTED: dict[str, Callable[[float], Task]] = {
    "format": _format,
    "format_scene": _format_scene,
    "style": _style,
    "gauge": _gauge,
}
TASKS: dict[str, Task] = {
    "source": Task.by_chance(SOURCE),
    "source_pictures": Task(SOURCE_PICTURES, train=540, val=90, test=270),
    "paints": Task.by_chance(PAINTS, train=800),
    "stock": Task.by_chance(STOCK, train=800),
} | {name: make(FULL_SHIFT) for name, make in SHIFTED.items()}
