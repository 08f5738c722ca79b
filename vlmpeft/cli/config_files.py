"""Finding configs by name, and the config that a run folder or an adapter stands for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

from vlmpeft.adapters.manifest import read_manifest
from vlmpeft.cli.early_check import SPLITS, check_early
from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.shipped import shipped_configs_dir
from vlmpeft.runtime.visible import visible
from vlmpeft.training.saved_config import read_saved_config

Say = Callable[[str], object]  # what is told in passing


def find_config(name: str) -> Path:
    """A config by path, then by file name under ./configs, then among the shipped ones; first place wins.

    Raises:
        UserError: nowhere, or two files of that name in one place.
    """
    if Path(name).is_file():
        return Path(name)
    for place in dict.fromkeys((Path("configs").resolve(), shipped_configs_dir().resolve())):
        found = _configs_in(place, Path(name).name)
        if len(found) > 1:
            raise UserError(f"config {name} is ambiguous: {', '.join(str(path) for path in found)}")
        if found:
            return found[0]
    known = {path.name for path in _configs_in(shipped_configs_dir(), "*.yaml")}
    raise UserError(f"config {name} does not exist.{did_you_mean(name, known)}")


def _configs_in(place: Path, pattern: str) -> list[Path]:
    """The configs in a folder and below, without studies, of which each stands for many runs."""
    found = sorted(place.rglob(pattern)) if place.is_dir() else []
    return [path for path in found if "studies" not in path.relative_to(place).parts[:-1]]


def to_stderr(line: str) -> None:
    """Say it to the user."""
    print(line, file=sys.stderr)  # noqa: T201


def with_found_configs(args: list[str], say: Say = to_stderr) -> list[str]:
    """Arguments with each `--config NAME` replaced by the file it means; says which."""
    result, expects_path = [], False
    for arg in args:
        flag, equals, value = arg.partition("=")
        if expects_path or (flag in ("--config", "-c") and equals):
            path = _announced(find_config(arg if expects_path else value), say)
            result += [*_resets(_read_yaml(path)), "--config", path]
        elif arg not in ("--config", "-c"):
            result.append(arg)
        expects_path = not expects_path and arg in ("--config", "-c")
    return result


def _read_yaml(path: str) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, OSError, ValueError):
        return None  # the parser says what is wrong with it


def _resets(config: Any) -> list[str]:
    """Arguments that clear each component for which a config gives a list of strategies.

    jsonargparse would let the settings of an earlier config's strategy leak into the list's entries.
    """
    try:
        plan = config["model"]["plan"].items()
    except (KeyError, TypeError, AttributeError):
        return []
    return [f"--model.plan.{name}=Frozen" for name, value in plan if isinstance(value, list)]


def _announced(path: Path, say: Say) -> str:
    say(f"config: {visible(str(path))}")
    return str(path)


def run_arguments(
    args: list[str],
    own: Collection[str] = (),
    *,
    splits: Collection[str] = SPLITS,
    say: Say = to_stderr,
) -> list[str]:
    """The keys of a run with configs found, and with the config that --resume or --adapter stand for.

    Args:
        args: of a verb.
        own: options of the verb itself, which a mistyped key may have meant.
        splits: of which the data has to be there.
        say: told which files the configs are.

    Raises:
        UserError: an unknown key or name, a file that is not there; --ckpt_path, whose stored settings would silently win over the command line; a config beside an
            adapter or a checkpoint that names code.
    """
    if any(arg.partition("=")[0] == "--ckpt_path" for arg in args):
        raise UserError("--ckpt_path is not used here: give fit --resume RUN_DIR, or --adapter DIR")
    implied: list[str] = []
    named = {Path(name) for name in _values_of("--config", args)}
    if folder := _value_of("--resume", args):
        path = _existing(Path(folder) / "config.yaml", f"run {folder}")
        implied = [] if path in named else _saved(path, False, args, say)
    elif folder := _value_of("--adapter", args):
        path = Path(folder).parent / "config.yaml"
        if not named:
            implied = _saved(path, True, args, say) if path.is_file() else _base_of(folder)
    found = implied + with_found_configs(args, say)
    check_early(found, own, splits=splits)
    return found


def _saved(path: Path, scoring: bool, args: list[str], say: Say) -> list[str]:
    """The config of a run folder as arguments; it was not named, so it may name no code."""
    allowed = names_of(*_values_of("--allow_strategy", args))
    config = read_saved_config(path, scoring, allowed)
    _announced(path, say)
    return [*_resets(config), f"--config={json.dumps(config, default=str)}"]


def names_of(*values: str | None) -> list[str]:
    """The names in values such as "mine.A,mine.B"."""
    return [name.strip() for value in values for name in (value or "").split(",") if name.strip()]


def _base_of(adapter: str) -> list[str]:
    """The base an adapter was trained on, as arguments."""
    base = read_manifest(adapter)["base"]
    bits = [
        f"--model.base.bits.{name}={base['bits'][name]}"
        for name in ("vision", "projector", "language")
    ]
    return [f"--model.base.path={base['id']}", *bits]


def _value_of(flag: str, args: list[str]) -> str | None:
    return next(iter(_values_of(flag, args)), None)


def _values_of(flag: str, args: list[str]) -> list[str]:
    """Every value that an option is given, as `--flag VALUE` or `--flag=VALUE`."""
    found = []
    for number, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == flag:
            found += [value] if equals else args[number + 1 : number + 2]
    return found


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise UserError(f"{what} has no {path.name}")
    return path
