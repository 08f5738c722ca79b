"""The `format` target task: the same pictures, answered as JSON records in a house vocabulary.

The pictures, the questions and what has to be seen are the source task's; what is new is the form, the keys
and the words. It isolates a language-side shift.
"""

from __future__ import annotations

import json
import random

from vlmpeft.data.workbench.scene import PLACES, Part, Scene
from vlmpeft.data.workbench.source import Ask, Question, ask_count

PAINTS = {
    "red": "crimson",
    "green": "moss",
    "blue": "cobalt",
    "yellow": "amber",
    "purple": "violet",
    "black": "soot",
}
ITEMS = {
    "gear": "cog",
    "nut": "hex",
    "bolt": "pin",
    "ring": "hoop",
    "plate": "slab",
    "wedge": "prism",
}
STYLE = " as json: house style."
BAYS: dict[str, str] = dict(zip(PLACES, ("A1", "A2", "B1", "B2"), strict=True))


def _record(place: str, part: Part) -> dict[str, str]:
    return {"bay": BAYS[place], "item": ITEMS[part.name], "paint": PAINTS[part.colour]}


def ask_part_record(scene: Scene, rng: random.Random) -> Question | None:
    place, part = rng.choice(scene.occupied())
    return Question("part", f"the part at the {place}{STYLE}", json.dumps(_record(place, part)))


def ask_count_record(scene: Scene, rng: random.Random) -> Question | None:
    """One count per record: of a colour, of a name, or of everything."""
    plain = ask_count(scene, rng)
    assert plain is not None
    subject = plain.prompt.removeprefix("how many ").removesuffix(" are there?")
    record: dict[str, str | int] = {"count": int(plain.answer)}
    word = (
        subject.removesuffix(" parts") if subject.endswith(" parts") else subject.removesuffix("s")
    )
    if word in PAINTS:
        record = {"paint": PAINTS[word], **record}
    elif word in ITEMS:
        record = {"item": ITEMS[word], **record}
    return Question("count", f"{plain.prompt}{STYLE}", json.dumps(record))


def ask_scene_record(scene: Scene, rng: random.Random) -> Question | None:
    records = [_record(place, part) for place, part in scene.occupied()]
    return Question("scene", f"the whole picture{STYLE}", json.dumps(records))


FORMAT: dict[str, tuple[Ask, float]] = {
    "part": (ask_part_record, 0.6),
    "count": (ask_count_record, 0.4),
}
FORMAT_SCENE: dict[str, tuple[Ask, float]] = {"scene": (ask_scene_record, 1.0)}
