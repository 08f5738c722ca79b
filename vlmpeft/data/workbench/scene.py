"""Scenes of tools and parts on a bench: what is where, and how it is drawn."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Pen = ImageDraw.ImageDraw
Colour = tuple[int, int, int]

SIDE = 64
CELL = SIDE // 2
OVERSAMPLE = 4

PLACES: tuple[str, ...] = ("top left", "top right", "bottom left", "bottom right")
COLOURS = {
    "red": (205, 45, 40),
    "green": (45, 150, 60),
    "blue": (45, 80, 200),
    "yellow": (230, 195, 40),
    "purple": (140, 50, 160),
    "black": (35, 35, 35),
}
NAMES = ("gear", "nut", "bolt", "ring", "plate", "wedge")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """One named, coloured part. Offsets and size in pixels; they vary the picture, not its meaning."""

    name: str
    colour: str
    dx: float = 0.0
    dy: float = 0.0
    size: float = 22.0


@dataclass(frozen=True)
class Scene:
    """Four places in reading order, each with a part or empty, on a bench of one grey level."""

    parts: tuple[Part | None, Part | None, Part | None, Part | None]
    bench: int = 225
    noise_seed: int = 0

    @property
    def signature(self) -> str:
        """The meaning alone: scenes that differ only in drawing share it."""
        return "|".join(f"{p.colour} {p.name}" if p else "-" for p in self.parts)

    @property
    def split(self) -> str:
        """The one split this layout may appear in, whatever the task: 1/8 test, 1/8 val, 6/8 train."""
        digest = hashlib.sha256(self.signature.encode()).digest()[0] % 8
        return {0: "test", 1: "val"}.get(digest, "train")

    def occupied(self) -> list[tuple[str, Part]]:
        """(place, part) of every place that is not empty, in reading order."""
        return [(place, part) for place, part in zip(PLACES, self.parts, strict=True) if part]


def random_scene(rng: random.Random, split: str | None = None, occupancy: float = 0.78) -> Scene:
    """Draw scenes until one belongs to `split` (any split if None); each place is taken by chance."""
    while True:
        parts = tuple(_random_part(rng) if rng.random() < occupancy else None for _ in PLACES)
        scene = Scene(parts, bench=rng.randint(205, 245), noise_seed=rng.getrandbits(32))  # type: ignore[arg-type]
        if any(parts) and split in (None, scene.split):
            return scene


def _random_part(rng: random.Random) -> Part:
    return Part(
        name=rng.choice(NAMES),
        colour=rng.choice(tuple(COLOURS)),
        dx=rng.uniform(-2.5, 2.5),
        dy=rng.uniform(-2.5, 2.5),
        size=rng.uniform(20, 25),
    )


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as a SIDE x SIDE RGB picture, antialiased, with faint sensor noise."""
    image = paint_scene(scene, COLOURS, (scene.bench, scene.bench, scene.bench))
    return add_noise(shrink(image), scene.noise_seed)


def paint_scene(scene: Scene, palette: Mapping[str, Colour], bench: Colour) -> Image.Image:
    """The scene OVERSAMPLE times as large as its picture, every part in its colour of the palette."""
    big = SIDE * OVERSAMPLE
    image = Image.new("RGB", (big, big), bench)
    pen = ImageDraw.Draw(image)
    for cell, part in enumerate(scene.parts):
        if part:
            x = ((cell % 2 + 0.5) * CELL + part.dx) * OVERSAMPLE
            y = ((cell // 2 + 0.5) * CELL + part.dy) * OVERSAMPLE
            radius = part.size * OVERSAMPLE / 2
            _SHAPES[part.name](pen, x, y, radius, palette[part.colour], bench)
    return image


def shrink(image: Image.Image) -> Image.Image:
    """A picture of SIDE x SIDE pixels of one that is OVERSAMPLE times as large."""
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def add_noise(image: Image.Image, seed: int, amplitude: int = 5) -> Image.Image:
    """Each channel of each pixel moved by at most `amplitude`, of 255."""
    pixels = np.asarray(image, dtype=np.int16)
    noise = np.random.default_rng(seed).integers(-amplitude, amplitude, pixels.shape, endpoint=True)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _polygon(
    x: float, y: float, radii: list[float], turn: float = 0.0
) -> list[tuple[float, float]]:
    step = 2 * math.pi / len(radii)
    return [
        (x + r * math.cos(turn + i * step), y + r * math.sin(turn + i * step))
        for i, r in enumerate(radii)
    ]


def _disc(pen: Pen, x: float, y: float, r: float, fill: Colour) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _gear(pen: Pen, x: float, y: float, r: float, fill: Colour, hole: Colour) -> None:
    teeth = [r if i % 4 < 2 else 0.68 * r for i in range(32)]
    pen.polygon(_polygon(x, y, teeth), fill=fill)
    _disc(pen, x, y, 0.22 * r, hole)


def _nut(pen: Pen, x: float, y: float, r: float, fill: Colour, hole: Colour) -> None:
    pen.polygon(_polygon(x, y, [r] * 6), fill=fill)
    _disc(pen, x, y, 0.42 * r, hole)


def _bolt(pen: Pen, x: float, y: float, r: float, fill: Colour, hole: Colour) -> None:
    pen.rectangle((x - 0.85 * r, y - r, x + 0.85 * r, y - 0.4 * r), fill=fill)
    pen.rectangle((x - 0.28 * r, y - 0.4 * r, x + 0.28 * r, y + r), fill=fill)


def _ring(pen: Pen, x: float, y: float, r: float, fill: Colour, hole: Colour) -> None:
    _disc(pen, x, y, r, fill)
    _disc(pen, x, y, 0.68 * r, hole)


def _plate(pen: Pen, x: float, y: float, r: float, fill: Colour, hole: Colour) -> None:
    pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)


def _wedge(pen: Pen, x: float, y: float, r: float, fill: Colour, hole: Colour) -> None:
    pen.polygon(_polygon(x, y + 0.15 * r, [r * 1.05] * 3, turn=-math.pi / 2), fill=fill)


_SHAPES = {
    "gear": _gear,
    "nut": _nut,
    "bolt": _bolt,
    "ring": _ring,
    "plate": _plate,
    "wedge": _wedge,
}
