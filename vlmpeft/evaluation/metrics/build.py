"""From what a config says to a metric."""

from __future__ import annotations

import inspect
from typing import Any

from vlmpeft.evaluation.metrics.base import TextMetric
from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.registry import METRICS, resolve

MetricSpec = str | dict[str, Any]  # a name, or {class_path, init_args, groups}
_KEYS = ("class_path", "init_args", "groups")


def build_metric(spec: MetricSpec) -> TextMetric:
    """The metric of a short name, a dotted path, or {class_path, init_args, groups}.

    `groups` are the values of `data.group_by` whose items it scores; others are none of its business.

    Raises:
        UserError: an unknown name, not a TextMetric, or arguments that it does not take.
    """
    name, init_args, groups = _read_spec(spec)
    cls = resolve(name, METRICS)
    if not (isinstance(cls, type) and issubclass(cls, TextMetric)):
        raise UserError(f"model.metrics: {name} is not a vlmpeft.TextMetric subclass")
    _check_names(name, cls, init_args)
    try:
        metric = cls(**_check_types(name, cls, init_args))
    except UserError as error:
        reason = str(error).removeprefix("model.metrics: ")  # of a metric inside this one
        raise UserError(f"model.metrics: {reason}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"model.metrics: {name} cannot be built: {error}") from error
    if not isinstance(getattr(metric, "name", None), str):
        raise UserError(f"model.metrics: {name} has no `name`, under which its score is reported")
    metric.groups = groups
    return metric


def _read_spec(spec: MetricSpec) -> tuple[str, dict[str, Any], tuple[str, ...] | None]:
    if isinstance(spec, str):
        return spec, {}, None
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise UserError(f"model.metrics: {spec!r} is neither a name nor {{class_path, init_args}}")
    for key in spec:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise UserError(f"model.metrics: unknown key {key!r} beside class_path.{hint}")
    init_args = spec.get("init_args") or {}
    if not isinstance(init_args, dict):
        raise UserError(
            f"model.metrics: init_args of {spec['class_path']} is not a mapping: {init_args!r}"
        )
    groups = spec.get("groups")
    if groups is not None and not (isinstance(groups, list) and groups):
        raise UserError(f"model.metrics: groups of {spec['class_path']} is a list, not {groups!r}")
    return spec["class_path"], init_args, tuple(map(str, groups)) if groups else None


def _check_names(name: str, cls: type[TextMetric], init_args: dict[str, Any]) -> None:
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    known = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for key in init_args:
        if key not in known:
            hint = did_you_mean(str(key), known) or " It takes no arguments."
            raise UserError(f"model.metrics: {name} has no argument {key!r}.{hint}")


def _check_types(name: str, cls: type[TextMetric], init_args: dict[str, Any]) -> dict[str, Any]:
    """The arguments as the annotations of `__init__` have them, so that "0.1" is no tolerance."""
    if not init_args:
        return init_args
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    try:
        typed = parser.parse_object(init_args, defaults=False).as_dict()
    except ArgumentError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model.metrics: {name}: {reason}") from error
    return {key: typed[key] for key in init_args}
