"""What is wrong with a config, in one line with the next move."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields

from vlmpeft.runtime.errors import did_you_mean
from vlmpeft.runtime.registry import METRICS, STRATEGIES, resolve


def explain(message: str, keys: Iterable[str]) -> str:
    """Jsonargparse's message as one line with the next move."""
    keys = [key.removeprefix("--") for key in keys]
    if hit := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        argument = hit[1].split("=")[0].removeprefix("--")
        return f"unknown argument --{argument}.{_close_key(argument, keys)}"
    if hit := re.search(
        r"does not accept option '([\w.]+?)(?:\.class_path|\.init_args.*)?'", message
    ):
        return f"unknown config key {hit[1]}.{_close_key(hit[1], keys)}"
    where = _failing_key(message)
    if hit := re.search(r"Expected a dot import path string: ([\w.]+)", message):
        known = METRICS if where.startswith("model.metrics") else STRATEGIES
        return f"{where}unknown strategy {hit[1]!r}.{did_you_mean(hit[1], known)}"
    if hit := re.search(r"Option '(\w+)' is not accepted", message):
        return f"{where}{_unknown_option(hit[1], message)}"
    if hit := re.search(
        r"Expected a typing\.Literal\[(.*?)\](?:\. Got|[\s\S]*Given) value: (.*)", message
    ):
        choices = hit[1].replace("'", "")
        return (
            f"{where}{hit[2]} is not one of {choices}.{did_you_mean(hit[2], choices.split(', '))}"
        )
    return where + _first_reason(message)


def _unknown_option(option: str, message: str) -> str:
    """Of a strategy: its name and the fields it has, as far as the message tells which it is."""
    path = re.search(r"class_path[=' ]+([\w.]+)", message)
    name = path[1].rsplit(".", 1)[-1] if path else ""
    if name not in STRATEGIES:
        return f"there is no {option!r}; the strategy's card or --help lists what there is"
    names = {field.name for field in fields(resolve(name, STRATEGIES))}
    return f"{name} has no {option!r}.{did_you_mean(option, names)}"


def _first_reason(message: str) -> str:
    """Of a union's errors the first that is about the value, else the whole message, on one line."""
    if "Errors:" in message:
        reasons = message.partition("Errors:")[2].partition("Given value type")[0]
        lines = [line.strip(" -") for line in reasons.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("Expected a <class 'list'>")]
        return " ".join(dict.fromkeys(lines))
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith("Parser key"))


def _close_key(key: str, keys: list[str]) -> str:
    """The closest known key; of a wrong key deep down, the closest with the same parent."""
    parent = key.rpartition(".")[0]
    siblings = [known for known in keys if known.rpartition(".")[0] == parent]
    return (
        did_you_mean(key, siblings or keys) if siblings or len(keys) < 30 else _closest(key, keys)
    )


def _closest(key: str, keys: list[str]) -> str:
    guess = did_you_mean(key, keys)
    return guess if guess.startswith(" Did you mean") else " See --help for the keys there are."


def _failing_key(message: str) -> str:
    hit = re.search(r"""[Kk]ey ['"]([\w.]+)['"]""", message)
    return f"{hit[1]}: " if hit else ""
