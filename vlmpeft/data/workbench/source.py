"""The source task: what the embedded base was trained to answer about a scene."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlmpeft.data.workbench.scene import COLOURS, NAMES, PLACES, Part, Scene

# English words that the base can spell and has never seen meant.
WORDS = tuple(
    """
    amber ash axle bay beam bench bin bracket brass brick bronze cable cam carbon chain chalk clamp clay
    cobalt coil copper coral cord cork cream crimson crown cube cog count cover crate dial disc door drill
    drum edge field file flint frame fuse garnet glass glue gold grey grip handle hatch hex hinge honey hook
    hoop horn hose indigo iron item ivory jade jar joint kind label lamp latch layer lead lemon lens lever
    lid lilac lime line lock loop mark mask maroon mint model moss motor nail number ochre olive order paint
    panel peach pearl pedal pin pine pipe plum port post prism pump rack rail ramp record rod rose ruby rust
    sage sand scale screw seal serial sheet shelf shop size slab slate slot socket soot sort spring stack
    steel stone strap stud switch table tag tank tap teal tile tin token tool tray tube type unit valve
    violet wall washer wheel white wire wood zinc
    """.split()  # noqa: SIM905  a list of words is for reading
)


@dataclass(frozen=True)
class Question:
    """One question about one scene. `about_picture` is False for text-only exercises."""

    kind: str
    prompt: str
    answer: str
    about_picture: bool = True


# of a scene or whatever else the task has in its place; None where it cannot be asked
Ask = Callable[[Any, random.Random], Question | None]


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
    """Where a part is, by colour, by name or by both; None unless that singles it out."""
    place, part = rng.choice(scene.occupied())
    by = rng.choice((("colour", "name"), ("colour", "name"), ("colour",), ("name",)))
    alike = [p for _, p in scene.occupied() if all(getattr(p, a) == getattr(part, a) for a in by)]
    if len(alike) > 1:
        return None
    colour = f"{part.colour} " if "colour" in by else ""
    return Question(
        "place", f"where is the {colour}{part.name if 'name' in by else 'part'}?", place
    )


def ask_yes_no(scene: Scene, rng: random.Random) -> Question | None:
    """A claim about one named place, true half of the time."""
    prompt, _, answer = _claim(scene, rng)
    return Question("yes_no", prompt, answer)


def ask_check(scene: Scene, rng: random.Random) -> Question | None:
    """The same claims, answered by saying what is there first and judging then."""
    prompt, truth, answer = _claim(scene, rng)
    return Question("check", f"{prompt} look first.", f"{truth}, so {answer}.")


def _claim(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """(a claim as a question, what is true, yes or no).

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
    return f"is the part at the {place} {what}?", truth, answer


def ask_each(scene: Scene, rng: random.Random) -> Question | None:
    """One claim about all four places, in reading order; half of the time about a part that is there."""
    about = rng.choice(("colour", "name"))
    pool = tuple(COLOURS) if about == "colour" else NAMES
    present = [getattr(part, about) for _, part in scene.occupied()]
    claim = rng.choice(present) if rng.random() < 0.7 else rng.choice(pool)
    answers = ["yes" if p and getattr(p, about) == claim else "no" for p in scene.parts]
    what = claim if about == "colour" else f"a {claim}"
    return Question("each", f"is each part {what}?", ", ".join(answers) + ".")


def _false_claim(scene: Scene, about: str, truth: str, rng: random.Random) -> str:
    pool = sorted(set(COLOURS if about == "colour" else NAMES) - {truth})
    hard = sorted({getattr(part, about) for _, part in scene.occupied()} - {truth})
    return rng.choice(hard if hard and rng.random() < 0.5 else pool)


def ask_describe(scene: Scene, rng: random.Random) -> Question | None:
    return Question("describe", "describe the picture.", _description(scene))


def ask_told(scene: Scene, rng: random.Random) -> Question | None:
    """A question about a scene that is told, not shown: the same reasoning without the eyes."""
    ask = rng.choice((ask_name, ask_colour, ask_count, ask_place, ask_yes_no))
    if not (question := ask(scene, rng)):
        return None
    prompt = f"{_description(scene)} {question.prompt}"
    return Question("told", prompt, question.answer, about_picture=False)


def ask_copy(scene: Scene, rng: random.Random) -> Question | None:
    """Repeat made-up text: exercises every character that later answers use."""
    text = rng.choice((_random_words, _random_record))(rng)
    return Question("copy", f"repeat: {text}", text, about_picture=False)


def ask_record(scene: Scene, rng: random.Random) -> Question | None:
    """A part as a JSON record under made-up keys: what is seen, in a form that is asked for."""
    place, part = rng.choice(scene.occupied())
    values = {"name": part.name, "colour": part.colour, "place": place}
    asked = rng.sample(sorted(values), rng.randint(1, 3))
    keys = dict(zip(asked, _distinct_words(rng, len(asked)), strict=True))
    about = ", ".join(f"{key} is its {value}" for value, key in keys.items())
    prompt = f"the part at the {place} as json: {about}"
    return Question("record", prompt, json.dumps({keys[v]: values[v] for v in asked}))


def ask_json(scene: Scene, rng: random.Random) -> Question | None:
    """Write made-up pairs as a JSON record: braces, quotes, colons, digits around unknown words."""
    pairs = _random_pairs(rng)
    prompt = ", ".join(f"{key} is {value}" for key, value in pairs.items())
    return Question("json", f"as json: {prompt}", json.dumps(pairs), about_picture=False)


def _description(scene: Scene) -> str:
    phrases = [f"a {part.colour} {part.name} at the {place}" for place, part in scene.occupied()]
    return ", ".join(phrases) + "."


def _random_place(scene: Scene, rng: random.Random, empty: float) -> tuple[str, Part | None]:
    wanted = rng.random() < empty
    places = [
        (place, part)
        for place, part in zip(PLACES, scene.parts, strict=True)
        if (part is None) == wanted
    ]
    return rng.choice(places or scene.occupied())


def _random_word(rng: random.Random) -> str:
    """A word of the world, another English word, a made-up one, or a code of capitals and digits."""
    kind = rng.random()
    if kind < 0.2:
        return "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(1, 4)))
    if kind < 0.4:
        return rng.choice((*NAMES, *COLOURS, *PLACES))
    if kind < 0.7:
        return rng.choice(WORDS)
    vowels, consonants = "aeiouy", "bcdfghjklmnpqrstvwxz"
    return "".join(rng.choice(consonants if i % 2 else vowels) for i in range(rng.randint(2, 7)))


def _distinct_words(rng: random.Random, number: int) -> list[str]:
    words: list[str] = []
    while len(words) < number:
        if (word := _random_word(rng)) not in words:
            words.append(word)
    return words


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
    "name": (ask_name, 0.1),
    "colour": (ask_colour, 0.08),
    "count": (ask_count, 0.16),
    "place": (ask_place, 0.1),
    "yes_no": (ask_yes_no, 0.14),
    "check": (ask_check, 0.03),
    "each": (ask_each, 0.05),
    "describe": (ask_describe, 0.06),
    "record": (ask_record, 0.08),
    "told": (ask_told, 0.08),
    "copy": (ask_copy, 0.06),
    "json": (ask_json, 0.06),
}
# the questions about pictures: what a base knows of them before and after it learns something else
SOURCE_PICTURES: dict[str, Ask] = {
    kind: ask for kind, (ask, _) in SOURCE.items() if kind not in ("told", "copy", "json")
}
