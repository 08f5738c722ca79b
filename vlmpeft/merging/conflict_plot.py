"""Conflict statistics as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from vlmpeft.merging.conflicts import Conflict

CELL, LEFT, TOP = 44, 110, 40
ROWS = (("cosine", -1.0, 1.0), ("sign_disagreement", 0.0, 1.0))


def draw_conflicts(found: Sequence[Conflict], path: Path) -> None:
    """A heat map for each statistic: components down, layers across; blue is agreement, red conflict.

    Args:
        found: the statistics.
        path: of the PNG.
    """
    components = list(dict.fromkeys(c.component for c in found))
    layers = sorted({c.layer for c in found}, key=lambda layer: (layer is not None, layer))
    height = TOP + CELL * len(components)
    width = LEFT + CELL * max(1, len(layers)) + 20
    image = Image.new("RGB", (max(width, 420), height * len(ROWS) + 10), "white")
    draw = ImageDraw.Draw(image)
    for i, (field, low, high) in enumerate(ROWS):
        top = i * height
        draw.text((8, top + 4), field.replace("_", " "), fill="black")
        for column, layer in enumerate(layers):
            name = "-" if layer is None else str(layer)
            draw.text((LEFT + CELL * column + 16, top + 22), name, fill="black")
        for row, component in enumerate(components):
            draw.text((8, top + TOP + CELL * row + 14), component, fill="black")
        for conflict in found:
            column, row = layers.index(conflict.layer), components.index(conflict.component)
            value = getattr(conflict, field)
            corner = (LEFT + CELL * column, top + TOP + CELL * row)
            _cell(draw, corner, value, (value - low) / (high - low), field == "cosine")
    image.save(path)


def _cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], value: float, share: float, good: bool
) -> None:
    conflict = 1 - share if good else share
    x, y = corner
    fill = (int(60 + 180 * conflict), 110, int(240 - 180 * conflict))
    draw.rectangle((x, y, x + CELL - 3, y + CELL - 3), fill=fill)
    draw.text((x + 6, y + 14), f"{value:+.2f}" if good else f"{value:.2f}", fill="white")
