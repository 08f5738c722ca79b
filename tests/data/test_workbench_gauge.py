"""`gauge`: what is asked can be read off the pixels."""

import math
import random

import numpy as np
import pytest

from vlmpeft.data.workbench import gauge
from vlmpeft.data.workbench.gauge import draw_panel, random_panel
from vlmpeft.data.workbench.tasks import SHIFTED, TASKS


def _reading(pixels, steps):
    """Where the red pixels far from the middle of the dial are, as a share of the sweep, to the nearest step."""
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 120) & (pixels[..., 2] < 120)
    rows, columns = np.nonzero(red)
    dy, dx = rows + 0.5 - gauge.DIAL_Y, columns + 0.5 - 32
    far = np.hypot(dx, dy) > 9
    angle = math.degrees(math.atan2(dy[far].mean(), dx[far].mean())) % 360
    along = (angle - 135 + 45) % 360 - 45  # a needle may be a little before the first reading
    return round(along / 270 * (steps - 1))


def _lit(pixels):
    width = 64 / gauge.LAMPS
    centres = [pixels[int(gauge.LAMPS_Y), int((i + 0.5) * width)] for i in range(gauge.LAMPS)]
    return [i for i, colour in enumerate(centres, start=1) if colour[1] > 150]


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_every_fact_can_be_read_off_the_picture(shift):
    asked = set()
    for index in range(120):
        question, panel = SHIFTED["gauge"](shift).example(random.Random(index), "train", index)
        pixels = np.asarray(draw_panel(panel)).astype(int)
        reading, lit = _reading(pixels, panel.steps), _lit(pixels)
        truth = {
            "reading": str(reading),
            "zone": ("low", "middle", "high")[reading * 3 // panel.steps],
            "lamps": str(len(lit)),
            "lit": ", ".join(map(str, lit)) or "none",
        }[question.kind]
        assert question.answer == truth
        asked.add(question.answer)
    assert len(asked) > 10


@pytest.mark.parametrize(("shift", "readings"), [(0.0, 3), (0.5, 6), (1.0, 9)])
def test_the_shift_is_how_finely_the_dial_is_read(shift, readings):
    rng = random.Random(0)
    seen = {random_panel(rng, "train", shift).reading for _ in range(400)}
    assert seen == set(range(readings))


def test_no_panel_is_in_two_splits():
    rng = random.Random(0)
    panels = {s: [random_panel(rng, s, 1.0) for _ in range(300)] for s in ("train", "val", "test")}
    meant = {s: {(p.reading, p.lamps) for p in found} for s, found in panels.items()}
    assert min(len(found) for found in meant.values()) > 5
    assert not meant["train"] & meant["test"]
    assert not meant["train"] & meant["val"]
    assert not meant["val"] & meant["test"]


def test_questions_are_in_words_that_the_source_task_has_no_use_for():
    source = {
        q.prompt
        for i in range(300)
        for q in [TASKS["source_pictures"].example(random.Random(i), "train", i)[0]]
    }
    gauges = {TASKS["gauge"].example(random.Random(i), "train", i)[0].prompt for i in range(40)}
    assert len(gauges) == 4
    assert not gauges & source
