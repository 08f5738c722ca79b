"""The `gauge` target task: panels of a dial and a row of lamps, a skill that the base does not have.

Where a needle points and which lamps are on has to be seen, and has to be said in words that the source task
has no use for: both sides have to change.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from vlmpeft.data.workbench.scene import OVERSAMPLE, SIDE, Colour, Pen, add_noise, shrink
from vlmpeft.data.workbench.source import Ask, Question

ZONES = ("low", "middle", "high")
LAMPS = 4
FEWEST, MOST = 3, 9  # readings that a dial can show, at shift 0 and 1
SWEEP = 270.0  # degrees from the first reading to the last
OFF_READING = 0.2  # steps that a needle may be off its reading
RADIUS, LAMP_RADIUS = 21.0, 5.5  # pixels of the picture
DIAL_Y, LAMPS_Y = 22.5, 55.0
FACE: Colour = (250, 250, 245)
RIM: Colour = (60, 60, 70)
NEEDLE: Colour = (190, 30, 30)
LIT: Colour = (70, 230, 90)
DARK: Colour = (40, 70, 45)


@dataclass(frozen=True)
class Panel:
    """A dial over a row of lamps.

    Args:
        reading: where the needle points, from 0.
        lamps: which lamps are on, from the left.
        steps: how many readings the dial has.
        offset: how far the needle is off its reading, in steps; less than half a step.
        bench: grey level around it.
        noise_seed: of the sensor noise.
    """

    reading: int
    lamps: tuple[bool, ...]
    steps: int = MOST
    offset: float = 0.0
    bench: int = 225
    noise_seed: int = 0

    @property
    def split(self) -> str:
        """The one split this panel may appear in: 1/8 test, 1/8 val, 6/8 train."""
        meaning = f"{self.reading} {self.lamps}"
        digest = hashlib.sha256(meaning.encode()).digest()[0] % 8
        return {0: "test", 1: "val"}.get(digest, "train")


def random_panel(rng: random.Random, split: str, shift: float) -> Panel:
    """Panels by chance until one belongs to the split; the dial has 3 readings at shift 0, 9 at 1."""
    steps = FEWEST + round(shift * (MOST - FEWEST))
    while True:
        panel = Panel(
            reading=rng.randrange(steps),
            lamps=tuple(rng.random() < 0.5 for _ in range(LAMPS)),
            steps=steps,
            offset=rng.uniform(-OFF_READING, OFF_READING),
            bench=rng.randint(205, 245),
            noise_seed=rng.getrandbits(32),
        )
        if panel.split == split:
            return panel


def draw_panel(panel: Panel) -> Image.Image:
    """The panel as a SIDE x SIDE RGB picture, antialiased, with faint sensor noise."""
    big = SIDE * OVERSAMPLE
    image = Image.new("RGB", (big, big), (panel.bench,) * 3)
    pen = ImageDraw.Draw(image)
    _draw_dial(pen, SIDE / 2, DIAL_Y, (panel.reading + panel.offset) / (panel.steps - 1))
    for lamp, is_on in enumerate(panel.lamps):
        x = (lamp + 0.5) * SIDE / LAMPS
        _disc(pen, x, LAMPS_Y, LAMP_RADIUS + 1, RIM)
        _disc(pen, x, LAMPS_Y, LAMP_RADIUS, LIT if is_on else DARK)
    return add_noise(shrink(image), panel.noise_seed)


def _draw_dial(pen: Pen, x: float, y: float, share: float) -> None:
    """A face and a needle; `share` of the sweep runs clockwise from the lower left."""
    _disc(pen, x, y, RADIUS, RIM)
    _disc(pen, x, y, RADIUS - 1.5, FACE)
    angle = math.radians(90 + (360 - SWEEP) / 2 + share * SWEEP)
    tip = _polar(x, y, 0.9 * RADIUS, angle)
    foot = [_polar(x, y, 0.35 * RADIUS, angle + side * math.radians(120)) for side in (1, -1)]
    pen.polygon([(px * OVERSAMPLE, py * OVERSAMPLE) for px, py in (tip, *foot)], fill=NEEDLE)


def _polar(x: float, y: float, radius: float, angle: float) -> tuple[float, float]:
    return x + radius * math.cos(angle), y + radius * math.sin(angle)


def _disc(pen: Pen, x: float, y: float, radius: float, fill: Colour) -> None:
    corners = (x - radius, y - radius, x + radius, y + radius)
    pen.ellipse([value * OVERSAMPLE for value in corners], fill=fill)


def ask_reading(panel: Panel, rng: random.Random) -> Question | None:
    return Question("reading", "what does the gauge read?", str(panel.reading))


def ask_zone(panel: Panel, rng: random.Random) -> Question | None:
    """Which third of the dial the needle is in."""
    zone = ZONES[3 * panel.reading // panel.steps]
    return Question("zone", "which zone is the gauge in?", zone)


def ask_lamps(panel: Panel, rng: random.Random) -> Question | None:
    return Question("lamps", "how many lamps are on?", str(sum(panel.lamps)))


def ask_lit(panel: Panel, rng: random.Random) -> Question | None:
    lit = [str(number) for number, is_on in enumerate(panel.lamps, start=1) if is_on]
    return Question("lit", "which lamps are on?", ", ".join(lit) or "none")


GAUGE: dict[str, Ask] = {
    "reading": ask_reading,
    "zone": ask_zone,
    "lamps": ask_lamps,
    "lit": ask_lit,
}
