"""The source task: what the embedded base was trained to answer about a scene."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from vlmpeft.data.workbench.scene import COLOURS, NAMES, PLACES, Part, Scene


@dataclass(frozen=True)
class Question:
    """One question about one scene. `about_picture` is False for text-only exercises."""

    kind: str
    prompt: str
    answer: str
    about_picture: bool = True


Ask = Callable[[Scene, random.Random], Question | None]


def ask_name(scene: Scene, rng: random.Random) -> Question | None:
    place, part = _random_place(scene, rng, empty=0.1)
    return Question("name", f"what part is at the {place}?", part.name if part else "nothing")


def ask_colour(scene: Scene, rng: random.Random) -> Question | None:
    place, part = rng.choice(scene.occupied())
    return Question("colour", f"what colour is the part at the {place}?", part.colour)


def ask_count(scene: Scene, rng: random.Random) -> Question | None:
    """How many parts of one colour, of one name, or in all; attributes in the scene half of the time."""
    parts = [part for _, part in scene.occupied()]
    present = rng.choice(parts) if rng.random() < 0.5 else None
    about = rng.choice(("colour", "colour", "name", "name", "all"))
    if about == "all":
        return Question("count", "how many parts are there?", str(len(parts)))
    pool = tuple(COLOURS) if about == "colour" else NAMES
    value = getattr(present, about) if present else rng.choice(pool)
    count = sum(getattr(part, about) == value for part in parts)
    what = f"{value} parts" if about == "colour" else f"{value}s"
    return Question("count", f"how many {what} are there?", str(count))


def ask_place(scene: Scene, rng: random.Random) -> Question | None:
    """Where a part is; None unless its colour and name single it out."""
    place, part = rng.choice(scene.occupied())
    if sum((p.name, p.colour) == (part.name, part.colour) for _, p in scene.occupied()) > 1:
        return None
    return Question("place", f"where is the {part.colour} {part.name}?", place)


def ask_yes_no(scene: Scene, rng: random.Random) -> Question | None:
    """A claim about one named place, true half of the time.

    Half of the false claims borrow the attribute of another part of the scene (a hard negative), so
    that "is it anywhere in the picture" is not enough.
    """
    place, part = rng.choice(scene.occupied())
    about = rng.choice(("colour", "name"))
    truth = getattr(part, about)
    claim, answer = truth, "yes"
    if rng.random() < 0.5:
        claim, answer = _false_claim(scene, about, truth, rng), "no"
    what = claim if about == "colour" else f"a {claim}"
    return Question("yes_no", f"is the part at the {place} {what}?", answer)


def _false_claim(scene: Scene, about: str, truth: str, rng: random.Random) -> str:
    pool = sorted(set(COLOURS if about == "colour" else NAMES) - {truth})
    hard = sorted({getattr(part, about) for _, part in scene.occupied()} - {truth})
    return rng.choice(hard if hard and rng.random() < 0.5 else pool)


def ask_describe(scene: Scene, rng: random.Random) -> Question | None:
    phrases = [f"a {part.colour} {part.name} at the {place}" for place, part in scene.occupied()]
    return Question("describe", "describe the picture.", ", ".join(phrases) + ".")


def ask_copy(scene: Scene, rng: random.Random) -> Question | None:
    """Repeat made-up text: exercises every character that later answers use."""
    text = rng.choice((_random_words, _random_record))(rng)
    return Question("copy", f"repeat: {text}", text, about_picture=False)


def ask_json(scene: Scene, rng: random.Random) -> Question | None:
    """Write made-up pairs as a JSON record: braces, quotes, colons, digits around unknown words."""
    pairs = _random_pairs(rng)
    prompt = ", ".join(f"{key} is {value}" for key, value in pairs.items())
    return Question("json", f"as json: {prompt}", json.dumps(pairs), about_picture=False)


def _random_place(scene: Scene, rng: random.Random, empty: float) -> tuple[str, Part | None]:
    wanted = rng.random() < empty
    places = [
        (place, part)
        for place, part in zip(PLACES, scene.parts, strict=True)
        if (part is None) == wanted
    ]
    return rng.choice(places or scene.occupied())


def _random_word(rng: random.Random) -> str:
    """Mostly pronounceable lower-case words, sometimes codes of capitals and digits."""
    if rng.random() < 0.25:
        return "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(1, 4)))
    if rng.random() < 0.3:
        return rng.choice((*NAMES, *COLOURS, *PLACES))
    vowels, consonants = "aeiouy", "bcdfghjklmnpqrstvwxz"
    return "".join(rng.choice(consonants if i % 2 else vowels) for i in range(rng.randint(2, 7)))


def _random_words(rng: random.Random) -> str:
    marks = (
        "",
        "",
        "",
        ",",
        ".",
        "-",
        "_",
        "/",
        "!",
        "?",
        ";",
        "+",
        "=",
        "(",
        ")",
        "[",
        "]",
        "'",
        "#",
        "%",
    )
    return " ".join(_random_word(rng) + rng.choice(marks) for _ in range(rng.randint(1, 5)))


def _random_pairs(rng: random.Random) -> dict[str, str | int]:
    return {
        _random_word(rng): rng.randint(0, 99) if rng.random() < 0.3 else _random_word(rng)
        for _ in range(rng.randint(1, 3))
    }


def _random_record(rng: random.Random) -> str:
    return json.dumps(_random_pairs(rng))


# kind -> (the question, how often it is asked while the embedded base is trained)
SOURCE: dict[str, tuple[Ask, float]] = {
    "name": (ask_name, 0.16),
    "colour": (ask_colour, 0.14),
    "count": (ask_count, 0.18),
    "place": (ask_place, 0.06),
    "yes_no": (ask_yes_no, 0.22),
    "describe": (ask_describe, 0.12),
    "copy": (ask_copy, 0.06),
    "json": (ask_json, 0.06),
}
