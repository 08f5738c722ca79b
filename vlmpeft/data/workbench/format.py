"""The `format` target task: the same pictures, answered as JSON records in a house vocabulary.

The pictures, the questions and what has to be seen are the source task's; what is new is the form, the keys
and the words. It isolates a language-side shift.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

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
BAYS: dict[str, str] = dict(zip(PLACES, ("A1", "A2", "B1", "B2"), strict=True))
KEYS = {"place": "bay", "name": "item", "colour": "paint"}
HINT = " as json: house style."


@dataclass(frozen=True)
class House:
    """The words of the answers: the house's own, or those of the source task that are kept.

    Args:
        bays: place -> its word, and so on.
        items: of names.
        paints: of colours.
        keys: of what is said of a part.
    """

    bays: Mapping[str, str]
    items: Mapping[str, str]
    paints: Mapping[str, str]
    keys: Mapping[str, str]

    @classmethod
    def at(cls, shift: float) -> House:
        """The house of which `shift` is the share of new words, of new keys too; the first of each list are new."""
        return cls(*(_renamed(words, shift) for words in (BAYS, ITEMS, PAINTS, KEYS)))

    def part_record(self, place: str, part: Part) -> dict[str, str]:
        """What is said of a part."""
        return {
            self.keys["place"]: self.bays[place],
            self.keys["name"]: self.items[part.name],
            self.keys["colour"]: self.paints[part.colour],
        }

    def ask_part(self, scene: Scene, rng: random.Random) -> Question | None:
        place, part = rng.choice(scene.occupied())
        answer = json.dumps(self.part_record(place, part))
        return Question("part", f"the part at the {place}{HINT}", answer)

    def ask_count(self, scene: Scene, rng: random.Random) -> Question | None:
        """One count per record: of a colour, of a name, or of everything."""
        plain = ask_count(scene, rng)
        assert plain is not None
        subject = plain.prompt.removeprefix("how many ").removesuffix(" are there?")
        word = subject.removesuffix(" parts") if " parts" in subject else subject.removesuffix("s")
        about = {self.keys[k]: w[word] for k, w in self._subjects() if word in w}
        answer = json.dumps({**about, "count": int(plain.answer)})
        return Question("count", f"{plain.prompt}{HINT}", answer)

    def _subjects(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        return ("colour", self.paints), ("name", self.items)

    def ask_scene(self, scene: Scene, rng: random.Random) -> Question | None:
        records = [self.part_record(place, part) for place, part in scene.occupied()]
        return Question("scene", f"the whole picture{HINT}", json.dumps(records))


def _renamed(words: Mapping[str, str], share: float) -> dict[str, str]:
    new = round(share * len(words))
    return {old: word if i < new else old for i, (old, word) in enumerate(words.items())}


def format_questions(shift: float) -> dict[str, tuple[Ask, float]]:
    """One part or one count a record."""
    house = House.at(shift)
    return {"part": (house.ask_part, 0.6), "count": (house.ask_count, 0.4)}


def format_scene_questions(shift: float) -> dict[str, tuple[Ask, float]]:
    """The whole scene as a list of records."""
    return {"scene": (House.at(shift).ask_scene, 1.0)}
