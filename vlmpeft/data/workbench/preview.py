"""One picture of all tasks: scenes of each, with a question and its answer below."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

from vlmpeft.data.workbench.reference import read_reference
from vlmpeft.data.workbench.scene import SIDE

STYLED = 22  # from here on both looks of `style` are among the first scenes
# (task, title, first scene): the source look and the style looks are of the same scenes, with the same questions
ROWS = (
    ("style@0", "source: what the base was trained on", STYLED),
    ("style@0.5", "style@0.5: the same scenes and questions at half the shift", STYLED),
    ("style", "style: the same at the full shift", STYLED),
    ("gauge", "gauge: a new skill", 0),
    ("format", "format: pictures of the source task, answers in a new form", 0),
    ("paints", "paints: new words for colours", 0),
    ("stock", "stock: new words for names", 0),
)
COLUMNS = 5
ZOOM = 2  # a pixel of a scene is ZOOM x ZOOM pixels of the preview
BITS = 5  # of a channel: a third of the bytes, and the eye sees no difference
CELL = 172  # width of a column
LETTERS = 27  # of a line of CELL
FONT_SIZE, LINE_HEIGHT = 12, 15
MARGIN, TITLE = 10, 24
INK, ANSWER = (30, 30, 30), (0, 90, 140)


@dataclass(frozen=True)
class Shown:
    """A scene of a task with its caption."""

    picture: Image.Image
    question: list[str]
    answer: list[str]

    @property
    def height(self) -> int:
        return SIDE * ZOOM + LINE_HEIGHT * (len(self.question) + len(self.answer)) + MARGIN


def draw_preview(seed: int = 0) -> Image.Image:
    """A row of test scenes for each task, with questions in black and answers in blue."""
    rows = [(title, _examples(name, seed, first)) for name, title, first in ROWS]
    heights = [TITLE + max(shown.height for shown in row) for _, row in rows]
    size = (CELL * COLUMNS + MARGIN, sum(heights) + MARGIN)
    page = Image.new("RGB", size, "white")
    top = MARGIN
    for (title, row), height in zip(rows, heights, strict=True):
        _draw_row(page, title, row, top)
        top += height
    return page


def _examples(reference: str, seed: int, first: int) -> list[Shown]:
    meant = read_reference(reference)
    task = meant.resolve()
    shown = []
    for index in range(first, first + COLUMNS):
        rng = random.Random(f"{meant.task} test {index} {seed}")
        question, scene = task.example(rng, "test", index)
        picture = ImageOps.posterize(task.draw(scene), BITS)
        picture = picture.resize((SIDE * ZOOM, SIDE * ZOOM), Image.Resampling.NEAREST)
        lines = [textwrap.wrap(text, LETTERS) for text in (question.prompt, question.answer)]
        shown.append(Shown(picture, *lines))
    return shown


def _draw_row(page: Image.Image, title: str, row: Sequence[Shown], top: int) -> None:
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, top), title, fill=INK, font=ImageFont.load_default(FONT_SIZE + 3))
    font = ImageFont.load_default(FONT_SIZE)
    for column, shown in enumerate(row):
        x, y = MARGIN + column * CELL, top + TITLE
        page.paste(shown.picture, (x, y))
        y += SIDE * ZOOM + 2
        for lines, ink in ((shown.question, INK), (shown.answer, ANSWER)):
            for line in lines:
                pen.text((x, y), line, fill=ink, font=font)
                y += LINE_HEIGHT
