"""Finding configs by name, and telling in one line what is wrong with one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlmpeft.errors import UserError, did_you_mean
from vlmpeft.registry import METRICS, STRATEGIES, resolve
from vlmpeft.shipped import shipped_configs_dir


def find_config(name: str) -> Path:
    """A config by path, then by file name under ./configs, then among the shipped ones; first place wins.

    Raises:
        UserError: nowhere, or two files of that name in one place.
    """
    if Path(name).is_file():
        return Path(name)
    for place in dict.fromkeys((Path("configs").resolve(), shipped_configs_dir().resolve())):
        found = sorted(place.rglob(Path(name).name)) if place.is_dir() else []
        if len(found) > 1:
            raise UserError(f"config {name} is ambiguous: {', '.join(str(path) for path in found)}")
        if found:
            return found[0]
    known = {path.name for path in shipped_configs_dir().rglob("*.yaml")}
    raise UserError(f"config {name} does not exist.{did_you_mean(name, known)}")


def with_found_configs(args: list[str]) -> list[str]:
    """Arguments with each `--config NAME` replaced by the file it means; prints which, to stderr."""
    result, expects_path = [], False
    for arg in args:
        flag, equals, value = arg.partition("=")
        if expects_path:
            result.append(_announced(arg))
        elif flag in ("--config", "-c") and equals:
            result += [flag, _announced(value)]
        else:
            result.append(arg)
        expects_path = not expects_path and arg in ("--config", "-c")
    return result


def _announced(name: str) -> str:
    path = str(find_config(name))
    print(f"config: {path}", file=sys.stderr)  # noqa: T201
    return path


def explain(message: str, keys: Iterable[str]) -> str:
    """jsonargparse's message as one line with the next move."""
    keys = [key.removeprefix("--") for key in keys]
    if hit := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        argument = hit[1].split("=")[0].removeprefix("--")
        return f"unknown argument --{argument}.{_close_key(argument, keys)}"
    if hit := re.search(r"""[Kk]ey ['"]([\w.]+)['"] is not expected""", message):
        return f"unknown config key {hit[1]}.{_close_key(hit[1], keys)}"
    key = _failing_key(message)
    if hit := re.search(r"(?:Expected a dot import path string:|class_path) '?([\w.]+)'?", message):
        known = METRICS if key.endswith("metrics") else STRATEGIES
        if not _resolves(hit[1], known):
            return f"{key}: unknown strategy {hit[1]!r}.{did_you_mean(hit[1], known)}"
    if hit := re.search(r"class_path '([\w.]+)'.*?Option '(\w+)' is not accepted", message, re.DOTALL):
        names = {field.name for field in fields(resolve(hit[1], STRATEGIES))}
        return f"{key}: {hit[1].rsplit('.', 1)[-1]} has no {hit[2]!r}.{did_you_mean(hit[2], names)}"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    return " ".join(dict.fromkeys(lines))[:400]


def _close_key(key: str, keys: list[str]) -> str:
    """The closest known key; of a wrong key deep down, the closest with the same parent."""
    parent = key.rpartition(".")[0]
    siblings = [known for known in keys if known.rpartition(".")[0] == parent]
    return did_you_mean(key, siblings or keys) if siblings or len(keys) < 30 else _closest(key, keys)


def _closest(key: str, keys: list[str]) -> str:
    guess = did_you_mean(key, keys)
    return guess if guess.startswith(" Did you mean") else " See --help for the keys there are."


def _failing_key(message: str) -> str:
    hit = re.search(r"""key ['"]([\w.]+)['"]""", message)
    return hit[1] if hit else "config"


def _resolves(name: str, known: dict[str, str]) -> Any:
    try:
        return resolve(name, known)
    except UserError:
        return None


def lightning_args(verb: str, args: list[str]) -> list[str]:
    """The arguments with configs found, and with the config that --resume or --adapter stand for.

    Raises:
        UserError: --ckpt_path, whose stored settings would silently win over the command line.
    """
    if any(arg.partition("=")[0] == "--ckpt_path" for arg in args):
        raise UserError("--ckpt_path is not used here: give fit --resume RUN_DIR, or --adapter DIR")
    implied = []
    if folder := _value_of("--resume", args):
        implied = ["--config", _existing(Path(folder) / "config.yaml", f"run {folder}")]
    elif folder := _value_of("--adapter", args):
        config = Path(folder).parent / "config.yaml"
        if not _value_of("--config", args):
            implied = ["--config", str(config)] if config.is_file() else _base_of(folder)
    return with_found_configs(implied + args)


def _base_of(adapter: str) -> list[str]:
    """The base an adapter was trained on, as arguments."""
    import json

    manifest = Path(adapter) / "manifest.json"
    base = json.loads(_read(manifest, f"adapter {adapter}"))["base"]
    bits = [f"--model.base.bits.{name}={base['bits'][name]}" for name in ("vision", "projector", "language")]
    return [f"--model.base.path={base['id']}", *bits]


def _read(path: Path, what: str) -> str:
    return Path(_existing(path, what)).read_text()


def _value_of(flag: str, args: list[str]) -> str | None:
    for number, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == flag:
            return value if equals else next(iter(args[number + 1 :]), None)
    return None


def _existing(path: Path, what: str) -> str:
    if not path.is_file():
        raise UserError(f"{what} has no {path.name}")
    return str(path)


def quiet_libraries() -> None:
    """Keep other people's progress bars and hints out of the terminal; warnings of ours stay."""
    import logging
    import os
    import warnings

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|jsonargparse|torch|transformers)\b.*")
