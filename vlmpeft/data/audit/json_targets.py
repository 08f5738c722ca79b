"""Answers that are meant to be JSON: do they parse, do they keep to one form?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlmpeft.data.conversation import Conversation

_MOSTLY = 0.9  # of the answers begin like an object: then all of them should be one


def check_targets(
    conversations: Sequence[Conversation], schema: dict[str, Any] | None
) -> list[tuple[str, tuple[str, ...]]]:
    """(what is wrong, examples); nothing for answers that are not meant to be JSON.

    Args:
        conversations: whose learnt answers are looked at.
        schema: JSON Schema that every answer has to meet; without one, answers have to parse if nearly all of
            them begin with a brace, and rare sets of keys are named.
    """
    answers = [
        (c.place, c.messages[turn].text) for c in conversations for turn in c.assistant_turns
    ]
    if schema is not None:
        return _against_schema(answers, schema)
    objects = [pair for pair in answers if pair[1].lstrip().startswith("{")]
    if len(objects) < _MOSTLY * len(answers):
        return []
    return _against_each_other(answers)


def _against_schema(
    answers: Sequence[tuple[str, str]], schema: dict[str, Any]
) -> list[tuple[str, tuple[str, ...]]]:
    from vlmpeft.data.json_schema import schema_violations

    wrong = [
        f"{place}: {reason}"
        for place, text in answers
        if (reason := schema_violations(text, schema))
    ]
    return [(f"{len(wrong)} answers violate the JSON Schema", tuple(wrong))] if wrong else []


def _against_each_other(answers: Sequence[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    broken: list[str] = []
    keys: dict[str, tuple[str, ...]] = {}
    for place, text in answers:
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            broken.append(f"{place}: {error}")
            continue
        keys[place] = tuple(sorted(value)) if isinstance(value, dict) else ("not an object",)
    found = []
    if broken:
        found.append((f"{len(broken)} answers are not valid JSON, the others are", tuple(broken)))
    counts = Counter(keys.values())
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = [f"{place}: {', '.join(names)}" for place, names in keys.items() if names != usual]
        if len(odd) <= (1 - _MOSTLY) * len(keys):
            text = f"{len(odd)} JSON answers have other keys than {', '.join(usual)}"
            found.append((text, tuple(odd)))
    return found
