"""The config.yaml that a run left, as --adapter and --resume find it: data, which may name no code.

A config that a user names by --config is code that the user runs: it may name any class. The config.yaml beside an
adapter is found without being named, and may come from elsewhere with the adapter. So it may only name classes of
vlmpeft's own, those that the command line allows, and a few of Lightning's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.registry import METRICS, STRATEGIES, own_name

# of the trainer: what it is told to call; scoring needs none of it
_CALLED = ("callbacks", "logger", "plugins", "profiler")
# of Lightning's classes those that are given no function and no class
_LIGHTNING = {
    f"lightning.pytorch.{name}"
    for name in (
        "callbacks.DeviceStatsMonitor",
        "callbacks.EarlyStopping",
        "callbacks.GradientAccumulationScheduler",
        "callbacks.LearningRateFinder",
        "callbacks.LearningRateMonitor",
        "callbacks.ModelSummary",
        "callbacks.RichModelSummary",
        "callbacks.RichProgressBar",
        "callbacks.ThroughputMonitor",
        "callbacks.Timer",
        "callbacks.TQDMProgressBar",
        "loggers.CSVLogger",
        "loggers.TensorBoardLogger",
        "loggers.WandbLogger",
    )
}
_GROUPS = (
    "trainer",
    "model",
    "model.base",
    "model.base.bits",
    "model.plan",
    "data",
    "eval",
    "search",
)


def read_saved_config(path: Path, scoring: bool, allowed: Collection[str] = ()) -> dict[str, Any]:
    """A run's config as plain data.

    Args:
        path: config.yaml of a run folder.
        scoring: leave out what the trainer was told to call while it trained.
        allowed: dotted names that the command line allows.

    Raises:
        UserError: not YAML, not of the form that `fit` writes, or it names a class that is neither ours nor allowed.
    """
    try:
        config = _load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read: {' '.join(str(error).split())}") from error
    _check_form(config, path)
    if config.get("model"):
        config["model"] = _as_named_today(config["model"])
    if scoring and config.get("trainer"):
        config["trainer"] = {k: v for k, v in config["trainer"].items() if k not in _CALLED}
    for place, name in names_from_outside(config, allowed):
        raise UserError(
            f"config {path}: {place} names {name!r}, which is code from outside of vlmpeft, and a config that "
            "was found beside an adapter or a checkpoint may not name any; if you know this code and trust it, "
            f"add --config {path}"
        )
    return config


def names_from_outside(
    config: dict[str, Any], allowed: Collection[str] = ()
) -> list[tuple[str, Any]]:
    """(place, name) of the classes a config names that are neither ours nor allowed."""
    return [(place, name) for place, name in _named(config) if not _is_known(name, allowed)]


def _is_known(name: Any, allowed: Collection[str]) -> bool:
    if not isinstance(name, str):
        return False
    ours = own_name(name, {*STRATEGIES, *METRICS})
    return ours is not None or name in _LIGHTNING or name in allowed


def _load(text: str) -> Any:
    """YAML without aliases, which `fit` does not write: ten lines of them can unpack to gigabytes."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("it has YAML aliases; write the values out")
    return yaml.safe_load(text)


def _as_named_today(value: Any) -> Any:
    """The same with our classes under the paths they have today, which version 0.1 had elsewhere."""
    if isinstance(value, dict):
        return {key: _as_named_today(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_named_today(entry) for entry in value]
    if isinstance(value, str) and value.startswith("vlmpeft."):
        return (STRATEGIES | METRICS).get(own_name(value, STRATEGIES | METRICS) or "", value)
    return value


def _check_form(config: Any, path: Path) -> None:
    """Refuse what jsonargparse would read as more than nested keys and values: other files, dotted or appending keys."""
    if not isinstance(config, dict):
        raise UserError(f"config {path} holds no keys; give another by --config")
    for group in _GROUPS:
        value = _at(config, group)
        if not isinstance(value, dict | None):
            raise UserError(f"config {path}: {group} holds no keys, but {value!r}")
    for key in _keys(config):
        if not isinstance(key, str) or not key.isidentifier():
            raise UserError(f"config {path}: {key!r} is no key that `fit` writes; remove it")


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _keys(value: Any) -> Iterator[Any]:
    """Every key of a config down to the values of its options, which may be mappings of any kind."""
    for group in ("", *_GROUPS):
        entries = _at(value, group) if group else value
        yield from entries or ()


def _named(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(place, name) of whatever in a config stands for a class."""
    options = {group: _at(config, group) or {} for group in ("model", "model.plan", "trainer")}
    texts = {f"model.plan.{name}": value for name, value in options["model.plan"].items()}
    texts["model.metrics"] = options["model"].get("metrics")
    texts |= {f"trainer.{key}": options["trainer"].get(key) for key in _CALLED}
    for place, value in texts.items():
        yield from ((place, v) for v in _as_list(value) if isinstance(v, str))
    for key, value in options[
        "trainer"
    ].items():  # trainer.strategy=ddp is a name of Lightning's own
        if key not in _CALLED and isinstance(value, str) and "." in value:
            yield f"trainer.{key}", value
    yield from _class_paths(config, "")


def _class_paths(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """(place, name) of every `class_path`, and of the metric inside a metric, wherever they are."""
    if isinstance(value, dict):
        for key, entry in value.items():
            here = f"{place}.{key}" if place else str(key)
            if key == "class_path" or (key == "metric" and isinstance(entry, str)):
                yield here, entry
            yield from _class_paths(entry, here)
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _class_paths(entry, f"{place}.{number}")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
