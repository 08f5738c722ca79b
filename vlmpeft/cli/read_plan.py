"""Base and plan out of a run's keys, without the parser of all keys, which imports Lightning and takes seconds to build."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vlmpeft.base.spec import BaseSpec
from vlmpeft.cli.command_line import VerbParser
from vlmpeft.cli.config_files import names_of
from vlmpeft.cli.explain import explain
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.registry import STRATEGIES, import_all
from vlmpeft.strategies.plan import Plan, allow_strategies

_PARTS = ("base", "plan")


class Planned:
    """What a config says is trained.

    Args:
        base: which pretrained model.
        plan: what is done to each of its components.
    """

    def __init__(self, base: BaseSpec = BaseSpec(), plan: Plan = Plan()):
        self.base, self.plan = base, plan


def read_plan(run_args: list[str]) -> Planned:
    """The base and the plan of a run.

    Args:
        run_args: its keys, checked (see `config_files.run_arguments`); those that are about neither are left out.

    Raises:
        UserError: a value that its key does not take.
    """
    parser = _parser()
    settings = parser.parse_args(_about_the_plan(run_args))
    allow_strategies(names_of(settings.allow_strategy))
    try:
        built: Any = parser.instantiate(settings)
        return built.model
    except UserError:
        raise
    except ValueError as error:  # jsonargparse wraps what a strategy says of its own values
        raise UserError(explain(str(error), [])) from error


@cache
def _parser() -> VerbParser:
    """Building it takes longer than parsing with it."""
    import_all(STRATEGIES)
    parser = VerbParser(prog="vlmpeft plan")
    parser.add_argument("--config", action="config")
    parser.add_argument("--allow_strategy", type=str | None, default=None)
    parser.add_class_arguments(Planned, "model")
    return parser


def _about_the_plan(args: list[str]) -> list[str]:
    kept, waiting = list[str](), list(args)
    while waiting:
        word = waiting.pop(0)
        flag, equals, value = word.partition("=")
        if not equals and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
        if flag in ("--config", "-c"):
            kept.append(f"--config={json.dumps(_model_of(value), default=str)}")
        elif flag == "--allow_strategy" or flag.startswith(("--model.base", "--model.plan")):
            kept.append(f"{flag}={value}")
    return kept


@cache
def _loaded(text: str) -> Any:
    """A config's YAML, read once: the rows of a study have one config."""
    return yaml.safe_load(text)


def _model_of(config: str) -> dict[str, Any]:
    """Base and plan of a config file, or of one written inline.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = config if config.startswith("{") else Path(config).read_text(encoding="utf-8")
        content = _loaded(text) or {}
        model = content.get("model") or {}
        return {"model": {key: model[key] for key in _PARTS if key in model}}
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"config {config[:200]} cannot be read: {' '.join(str(error).split())}"
        ) from error
