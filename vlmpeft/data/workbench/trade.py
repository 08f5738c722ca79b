"""Two small target tasks with answer vocabularies of their own: `paints` names colours, `stock` names parts, both in trade words.

Beside `format` they are what adapters are merged over: the same pictures, other words, other questions.
"""

from __future__ import annotations

import random

from vlmpeft.data.workbench.scene import Scene
from vlmpeft.data.workbench.source import Ask, Question

SHADES = {
    "red": "ruby",
    "green": "jade",
    "blue": "indigo",
    "yellow": "lemon",
    "purple": "lilac",
    "black": "carbon",
}
WARES = {
    "gear": "wheel",
    "nut": "washer",
    "bolt": "screw",
    "ring": "coil",
    "plate": "tile",
    "wedge": "ramp",
}


def ask_shade(scene: Scene, rng: random.Random) -> Question | None:
    place, part = rng.choice(scene.occupied())
    answer = f"{SHADES[part.colour]} paint"
    return Question("shade", f"which paint is on the part at the {place}?", answer)


def ask_ware(scene: Scene, rng: random.Random) -> Question | None:
    place, part = rng.choice(scene.occupied())
    answer = f"a {WARES[part.name]} in stock"
    return Question("ware", f"which stock item is at the {place}?", answer)


PAINTS: dict[str, tuple[Ask, float]] = {"shade": (ask_shade, 1.0)}
STOCK: dict[str, tuple[Ask, float]] = {"ware": (ask_ware, 1.0)}
