"""Dotted settings: out of a file, with variables filled in, as arguments of a command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlmpeft.runtime.errors import UserError, did_you_mean

Settings = Mapping[str, Any]
# keys that are groups of keys; a mapping below any other key is a value
_GROUPS = ("model", "model.base", "model.base.bits", "model.plan", "data", "trainer", "eval")
_VARIABLE = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")


def dotted(given: Mapping[Any, Any] | None, below: str = "") -> dict[str, Any]:
    """Settings by dotted keys, of those and of groups written as in a config.

    >>> dotted({"model": {"plan": {"vision": "LoRA"}}, "trainer.max_steps": 3})
    {'model.plan.vision': 'LoRA', 'trainer.max_steps': 3}
    """
    return dict(_flat(given or {}, "", below))


def _flat(given: Mapping[Any, Any], place: str, below: str) -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        here = f"{place}.{key}" if place else str(key)
        is_group = (f"{below}.{here}" if below else here) in _GROUPS
        if is_group and isinstance(value, Mapping):
            yield from _flat(value, here, below)
        else:
            yield here, value


def as_arguments(settings: Settings) -> list[str]:
    """Settings as `fit` takes them.

    A component that gets a list of strategies is cleared first: the entries would take over settings of the strategy
    that an earlier setting gave it.

    >>> as_arguments({"model.plan.vision": ["LoRA", "BitFit"], "data.val": None})
    ['--model.plan.vision=Frozen', '--model.plan.vision=["LoRA", "BitFit"]', '--data.val=null']
    """
    return [argument for key, value in settings.items() for argument in _argument(key, value)]


def _argument(key: str, value: Any) -> Iterator[str]:
    if key.startswith("model.plan.") and key.count(".") == 2 and isinstance(value, list):
        yield f"--{key}=Frozen"
    yield f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def fill(value: Any, variables: Mapping[str, Any], place: str) -> Any:
    """A value with each {variable} replaced; what is nothing but a {variable} gets its value as it is, of any type.

    `{{word}}` stands for {word} itself.

    Args:
        value: text, or a list or mapping of it.
        variables: name -> value.
        place: for messages.

    Raises:
        UserError: an unknown variable, or a list or mapping in the middle of a text.
    """
    if isinstance(value, Mapping):
        return {
            fill_text(str(key), variables, place): fill(one, variables, place)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [fill(one, variables, place) for one in value]
    if not isinstance(value, str):
        return value
    whole = _VARIABLE.fullmatch(value)
    if whole and whole[2]:
        return _value(whole[2], variables, place)
    return fill_text(value, variables, place)


def fill_text(text: str, variables: Mapping[str, Any], place: str) -> str:
    """Text with each {variable} replaced.

    Raises:
        UserError: as of `fill`.
    """

    def replaced(hit: re.Match[str]) -> str:
        if hit[1]:
            return f"{{{hit[1]}}}"
        value = _value(hit[2], variables, place)
        if isinstance(value, (list, Mapping)):
            raise UserError(
                f"{place}: {{{hit[2]}}} is {value}, which is no part of a text; let it stand alone"
            )
        return str(value)

    return _VARIABLE.sub(replaced, text)


def names_in(text: str) -> set[str]:
    """The variables of a text."""
    return {hit[2] for hit in _VARIABLE.finditer(text) if hit[2]}


def _value(name: str, variables: Mapping[str, Any], place: str) -> Any:
    if name not in variables:
        known = did_you_mean(name, variables) or " The row has no grid and no zip."
        raise UserError(
            f"{place}: unknown variable {{{name}}}.{known} Braces themselves are {{{{{name}}}}}"
        )
    return variables[name]
