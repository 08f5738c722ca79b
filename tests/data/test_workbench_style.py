"""`style`: the same facts in another look."""

import math
import random

import numpy as np
import pytest

from vlmpeft.data.workbench import style
from vlmpeft.data.workbench.scene import COLOURS, NAMES, PLACES, Part, draw_scene
from vlmpeft.data.workbench.style import (
    LOOKS,
    StyledScene,
    draw_styled,
    false_palette,
    names_colour,
)
from vlmpeft.data.workbench.tasks import SHIFTED, TASKS

SHIFTS = (0.25, 0.5, 0.75, 1.0)


def _examples(number=200, shift=1.0):
    task = SHIFTED["style"](shift)
    return [task.example(random.Random(i), "train", i) for i in range(number)]


@pytest.mark.parametrize("shift", [i / 10 for i in range(11)])
def test_no_two_colours_become_alike_nor_like_the_bench(shift):
    palette = [*false_palette(shift).values()]
    assert len(palette) == len(COLOURS)
    pairs = [math.dist(a, b) for i, a in enumerate(palette) for b in palette[:i]]
    benches = [style._between((grey,) * 3, style.FALSE_BENCH, shift) for grey in (205, 245)]
    assert min(pairs) > 50
    assert min(math.dist(colour, bench) for colour in palette for bench in benches) > 50


def test_no_new_colour_is_an_old_one():
    new, old = false_palette(1.0).values(), COLOURS.values()
    assert min(math.dist(a, b) for a in new for b in old) > 30


def test_about_a_blueprint_nothing_is_asked_that_has_to_do_with_colour():
    asked = _examples(600)
    on = {look: [q for q, scene in asked if scene.look == look] for look in LOOKS}
    assert min(len(questions) for questions in on.values()) > 150
    assert not any(names_colour(question) for question in on["blueprint"])
    assert {q.kind for q in on["blueprint"]} == {"name", "count", "place", "yes_no"}
    assert sum(names_colour(question) for question in on["false_colour"]) > 100


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_every_fact_can_be_read_off_the_picture(look, shift):
    """Of all parts that could stand at a place, the right one explains the pixels best."""
    for seed in range(2):
        rng = random.Random(seed)
        parts = tuple(Part(rng.choice(NAMES), rng.choice([*COLOURS])) for _ in PLACES)
        scene = StyledScene(parts, look=look, noise_seed=seed)
        shown = np.asarray(draw_styled(scene, shift), dtype=float)
        place = seed % len(PLACES)
        colours = [*COLOURS] if look == "false_colour" else [parts[place].colour]
        distance = {}
        for name in NAMES:
            for colour in colours:
                other = (*parts[:place], Part(name, colour), *parts[place + 1 :])
                quiet = np.asarray(
                    draw_styled(StyledScene(other, look=look, noise_seed=99), shift), dtype=float
                )
                distance[name, colour] = ((shown - quiet) ** 2).sum()
        best, second = sorted(distance, key=lambda guess: distance[guess])[:2]
        assert best == (parts[place].name, parts[place].colour)
        assert distance[second] > 1.2 * distance[best]


def test_a_blueprint_does_not_show_colours():
    red, blue = (
        draw_styled(StyledScene((Part("gear", c), None, None, None), look="blueprint"), 1.0)
        for c in ("red", "blue")
    )
    assert red.tobytes() == blue.tobytes()


def test_at_no_shift_a_scene_looks_as_in_the_source_task():
    for _, scene in _examples(20, shift=0.0):
        assert SHIFTED["style"](0.0).draw(scene).tobytes() == draw_scene(scene).tobytes()
        assert TASKS["style"].draw(scene).tobytes() != draw_scene(scene).tobytes()


def test_the_questions_are_the_same_at_every_shift():
    asked = {s: [q for q, _ in _examples(50, s)] for s in (0.0, 0.5, 1.0)}
    assert asked[0.0] == asked[0.5] == asked[1.0]
