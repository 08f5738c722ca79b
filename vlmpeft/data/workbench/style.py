"""The `style` target task: questions of the source task about scenes that are drawn in another way.

What is asked and answered is the source task's; what is new is how a picture looks: in false colours on a coloured
bench, or as a blueprint, with more sensor noise. It isolates a vision-side shift. Every fact that is asked for is
still there: the false colours of two colours differ at every size of the shift, and about a blueprint nothing is
asked that has to do with colour.

The new colours are none of the old ones, and parts stay darker than what they lie on. A permutation of the old
colours is learnt sooner by the language model, as new words for them; a bench that is darker than the parts takes
thousands of steps (docs/LOG.md).
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter

from vlmpeft.data.workbench.scene import (
    COLOURS,
    Colour,
    Scene,
    add_noise,
    draw_scene,
    paint_scene,
    random_scene,
    shrink,
)
from vlmpeft.data.workbench.source import (
    Ask,
    Question,
    ask_colour,
    ask_count,
    ask_name,
    ask_place,
    ask_yes_no,
)

LOOKS = ("false_colour", "blueprint")
HUE_TURN = (
    1 / 12
)  # of the whole circle, at the full shift: every colour is between two that the base knows
FALSE_BLACK: Colour = (120, 60, 20)
FALSE_BENCH: Colour = (220, 160, 110)
PAPER: Colour = (90, 120, 190)
WASH: Colour = (30, 50, 120)  # of the parts, all alike
LINE: Colour = (235, 240, 250)
LINE_WIDTH = 5  # of the oversampled picture; odd
NOISE, MORE_NOISE = 5, 10  # of the source look; added to it at the full shift


@dataclass(frozen=True)
class StyledScene(Scene):
    """A scene, and the look that it is drawn in."""

    look: str = LOOKS[0]


def random_styled_scene(rng: random.Random, split: str) -> StyledScene:
    """A scene of a split in one of the looks."""
    scene = random_scene(rng, split)
    return StyledScene(scene.parts, scene.bench, scene.noise_seed, rng.choice(LOOKS))


def false_palette(shift: float) -> dict[str, Colour]:
    """Colour -> what it is drawn in: its hue turned by up to a twelfth of the circle; black turns brown."""
    turned = {name: _turn(colour, shift * HUE_TURN) for name, colour in COLOURS.items()}
    return turned | {"black": _between(COLOURS["black"], FALSE_BLACK, shift)}


def _turn(colour: Colour, turn: float) -> Colour:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    red, green, blue = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _between(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _grey(level: int) -> Colour:
    return level, level, level


def draw_styled(scene: StyledScene, shift: float) -> Image.Image:
    """The picture of a scene in its look; at shift 0 it is the source task's."""
    if not shift:
        return draw_scene(scene)
    draw = _false_colours if scene.look == "false_colour" else _blueprint
    amplitude = NOISE + round(shift * MORE_NOISE)
    return add_noise(shrink(draw(scene, shift)), scene.noise_seed, amplitude)


def _false_colours(scene: Scene, shift: float) -> Image.Image:
    bench = _between(_grey(scene.bench), FALSE_BENCH, shift)
    return paint_scene(scene, false_palette(shift), bench)


def _blueprint(scene: Scene, shift: float) -> Image.Image:
    """The source picture fading into lines: outlines are what a thinner mask of the parts leaves."""
    white = dict.fromkeys(COLOURS, _grey(255))
    mask = paint_scene(scene, white, _grey(0)).convert("L")
    outline = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(LINE_WIDTH)))
    sheet = Image.composite(_sheet(mask, WASH), _sheet(mask, PAPER), mask)
    lines = Image.composite(_sheet(mask, LINE), sheet, outline)
    return Image.blend(paint_scene(scene, COLOURS, _grey(scene.bench)), lines, shift)


def _sheet(like: Image.Image, colour: Colour) -> Image.Image:
    return Image.new("RGB", like.size, colour)


def _drawn(ask: Ask) -> Ask:
    """A question, or None where it has to do with the colours of a blueprint."""

    def ask_of_look(scene: StyledScene, rng: random.Random) -> Question | None:
        question = ask(scene, rng)
        if question and scene.look == "blueprint" and names_colour(question):
            return None
        return question

    return ask_of_look


def names_colour(question: Question) -> bool:
    """Whether a question or its answer has a word of colour in it."""
    words = f"{question.prompt} {question.answer}".replace("?", " ").split()
    return not {"colour", *COLOURS}.isdisjoint(words)


STYLE: dict[str, Ask] = {
    "name": _drawn(ask_name),
    "colour": _drawn(ask_colour),
    "count": _drawn(ask_count),
    "place": _drawn(ask_place),
    "yes_no": _drawn(ask_yes_no),
}
