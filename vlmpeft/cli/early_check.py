"""Mistakes in the keys, names and paths of a run, told before torch is imported.

What needs the classes themselves (values, types, options of a strategy of the user's own) is left to the parser.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlmpeft.cli.known_keys import COMPONENTS, GROUPS, keys_of, strategy_fields
from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.registry import METRICS, STRATEGIES, own_name

# beside the groups
TOP = (
    *("config", "seed_everything", "runs_dir", "run_name", "init_adapter", "checkpoint_every"),
    *("allow_strategy", "resume", "yes", "adapter", "out"),  # the last four of one verb or another
)
_OF_PARSERS = ("help", "h", "c", "print_config", "print_shtab")
SPLITS = ("train", "val", "test", "retention")


@dataclass(frozen=True)
class Setting:
    """One key that was set.

    Args:
        key: dotted.
        value: as YAML reads it.
        is_argument: whether it was an argument; else a key of a config.
    """

    key: str
    value: Any
    is_argument: bool

    def unknown(self, known: Collection[str]) -> UserError:
        """What to say of a key that is none of `known`."""
        kind = "argument --" if self.is_argument else "config key "
        return UserError(f"unknown {kind}{self.key}.{did_you_mean(self.key, known)}")


def check_early(
    args: list[str], own: Collection[str] = (), *, splits: Collection[str] = SPLITS
) -> None:
    """Check what can be checked without importing the classes behind the keys.

    Args:
        args: keys of a run, with configs found.
        own: options of the verb itself, which a mistyped key may have meant.
        splits: of which the data has to be there.

    Raises:
        UserError: the first unknown key, unknown name or missing file.
    """
    settings = list(_settings(args))
    for setting in settings:
        _check_key(setting, own)
    strategies: dict[str, str | None] = {}
    for setting in settings:
        _check_names(setting, strategies)
    last = {setting.key: setting.value for setting in settings}
    _check_base(last.get("model.base.path"))
    _check_data(last, splits)


def _settings(args: list[str]) -> Iterator[Setting]:
    """Every key of the arguments and of the configs among them, in the order in which they act."""
    for flag, text in _options(args):
        if flag in ("config", "c"):
            yield from _of_config(text)
        else:
            yield Setting(flag, _value(text), True)


def _options(args: list[str]) -> Iterator[tuple[str, str | None]]:
    """(option without dashes, its value)."""
    for number, arg in enumerate(args):
        if not arg.startswith("-") or _is_number(arg):
            continue
        flag, equals, value = arg.lstrip("-").partition("=")
        following = args[number + 1] if number + 1 < len(args) else None
        yield flag, value if equals else following


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-\d[\d.e-]*", text) is not None


def _value(text: str | None) -> Any:
    try:
        return yaml.safe_load(text or "")
    except yaml.YAMLError:
        return text


def _of_config(text: str | None) -> Iterator[Setting]:
    """The keys of a config file, or of one written inline."""
    if text is None:
        return
    try:
        content = text if text.startswith("{") else Path(text).read_text(encoding="utf-8")
        yield from _flat(yaml.safe_load(content), "")
    except (OSError, ValueError, yaml.YAMLError):
        return  # the parser says what is wrong with the file


def _flat(config: Any, place: str) -> Iterator[Setting]:
    for key, value in config.items() if isinstance(config, Mapping) else ():
        here = f"{place}.{key}" if place else str(key)
        parent = here.rpartition(".")[0]
        if isinstance(value, Mapping) and (
            here in GROUPS or parent == "model.plan" or ".init_args" in here[-10:]
        ):
            yield from _flat(value, here)
        else:
            yield Setting(here, value, False)


# -- keys ------------------------------------------------------------------------------------------


def _check_key(setting: Setting, own: Collection[str]) -> None:
    """Raise a UserError for a key that no verb has; of its group the closest is proposed."""
    key = setting.key.removesuffix("+").removesuffix(".help")
    if "." not in key:
        top = {*TOP, *_OF_PARSERS, *(g for g in GROUPS if "." not in g)}
        if key not in top:
            raise setting.unknown((top | {*own}) - {*_OF_PARSERS})
        return
    group = max((g for g in GROUPS if key.startswith(f"{g}.")), key=len, default=None)
    if group is None:
        raise setting.unknown([g for g in GROUPS if "." not in g])
    name = key.removeprefix(f"{group}.").partition(".")[0]
    if name not in keys_of(group):
        raise setting.unknown([f"{group}.{known}" for known in keys_of(group)])


# -- names -----------------------------------------------------------------------------------------


def _check_names(setting: Setting, strategies: dict[str, str | None]) -> None:
    """Raise a UserError for a short name, or an option of one of our strategies, that there is not.

    Args:
        setting: one key.
        strategies: component -> short name of the strategy it was given last; changed.
    """
    if setting.key == "model.metrics":
        for entry in setting.value if isinstance(setting.value, list) else [setting.value]:
            _check_name(_class_of(entry), METRICS, "model.metrics: unknown metric")
    head, _, rest = setting.key.removeprefix("model.plan.").partition(".")
    if not setting.key.startswith("model.plan.") or head not in COMPONENTS:
        return
    where = f"model.plan.{head}: "
    if not rest or rest == "class_path":
        for entry in setting.value if isinstance(setting.value, list) else [setting.value]:
            name = _class_of(entry)
            _check_name(name, STRATEGIES, f"{where}unknown strategy")
            strategies[head] = own_name(name, STRATEGIES) if isinstance(name, str) else None
            options = entry.get("init_args") if isinstance(entry, Mapping) else None
            for option in options if isinstance(options, Mapping) else ():
                _check_option(strategies[head], str(option), where)
    elif rest.startswith("init_args."):
        _check_option(strategies.get(head), rest.split(".")[1].removesuffix("+"), where)


def _class_of(entry: Any) -> Any:
    return entry.get("class_path") if isinstance(entry, Mapping) else entry


def _check_name(name: Any, names: Collection[str], what: str) -> None:
    if isinstance(name, str) and name.isidentifier() and name not in names:
        raise UserError(f"{what} {name!r}.{did_you_mean(name, names)}")


def _check_option(strategy: str | None, option: str, where: str) -> None:
    if strategy and option not in strategy_fields(strategy):
        known = strategy_fields(strategy)
        raise UserError(f"{where}{strategy} has no {option!r}.{did_you_mean(option, known)}")


# -- paths -----------------------------------------------------------------------------------------


def _check_base(base: Any) -> None:
    """Raise a UserError for a base that is neither a folder nor could be of the hub."""
    if not isinstance(base, str) or base == "tiny" or Path(base).is_dir():
        return
    if not _could_be_of_the_hub(base):
        raise UserError(f"base {base} is not a folder; give a folder, a hub id (org/name) or tiny")


def _check_data(last: Mapping[str, Any], splits: Collection[str]) -> None:
    """Raise a UserError for the first data file or task that is not there."""
    for split in splits:
        value = last.get(f"data.{split}")
        for entry in value if isinstance(value, list) else [value]:
            path = entry.get("path") if isinstance(entry, Mapping) else entry
            if isinstance(path, str):
                _check_source(path)


def _check_source(path: str) -> None:
    """Raise a UserError for a task that is not one, or a file that is not there."""
    if path.startswith("workbench:"):
        from vlmpeft.data.workbench.reference import read_reference

        read_reference(path)
    elif not _is_there(path):
        raise UserError(f"data file {path} does not exist")


def _could_be_of_the_hub(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists() or bool(glob.has_magic(path))
    except (OSError, ValueError):
        return True  # reading it says what is wrong
