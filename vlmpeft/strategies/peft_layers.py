"""PEFT's own tuners, put onto exactly the planned modules of one component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vlmpeft.errors import UserError
from vlmpeft.strategies.base import Attachment, Component, Strategy


def attach_tuner(
    strategy: Strategy,
    component: Component,
    config: Any,
    targets: Sequence[str],
    adapter_name: str = "default",
) -> tuple[Attachment, Any]:
    """Build PEFT's tuner of `config` on the component; returns what it left there, and the tuner.

    The tuner class is built on the model instead of calling `inject_adapter_in_model`, which refuses VeRA and
    loses AdaLoRA's `update_and_allocate`.

    Args:
        strategy: what is attached.
        component: where.
        config: a PeftConfig whose `target_modules` are `targets`.
        targets: full names of the modules to be wrapped.
        adapter_name: under which PEFT files the new parameters.

    Raises:
        UserError: PEFT refuses a module, or would wrap others than planned.
    """
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    model, name = component.model, type(strategy).__name__
    before = {parameter for _, parameter in model.named_parameters()}
    tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    try:
        tuner = tuner_class(model, config, adapter_name)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        unwrap(model, [target for target in targets if _is_wrapped(model.get_submodule(target))])
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name} on {component.name}: {reason}") from error
    finally:
        vars(model).pop("peft_config", None)  # would make the next component's tuner warn
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
    new = {n: p for n, p in model.named_parameters() if p not in before}
    trainable = tuple(n for n in new if prefix in n)
    _check_wrapped(component, targets, adapter_name)
    attachment = Attachment(
        component.name,
        strategy,
        targets=tuple(targets),
        trainable=trainable,
        added=sum(new[n].numel() for n in trainable),
        detach=lambda: unwrap(model, targets),
    )
    return attachment, tuner


def _check_wrapped(component: Component, targets: Sequence[str], adapter_name: str) -> None:
    wrapped = {
        name
        for name, module in component.model.named_modules()
        if _is_wrapped(module)
        and adapter_name in _adapters(module)
        and component.components.component_of(name) == component.name
    }
    assert wrapped == set(targets), (
        wrapped ^ set(targets),
        "PEFT wrapped other modules than planned",
    )


def _is_wrapped(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _adapters(module: Any) -> set[str]:
    """The adapters a PEFT layer holds parameters of."""
    return {key for name in module.adapter_layer_names for key in getattr(module, name, {})}


def unwrap(model: nn.Module, targets: Sequence[str]) -> None:
    """Put the original layer back in the place of each PEFT wrapper."""
    for name in targets:
        parent, _, leaf = name.rpartition(".")
        wrapper = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, wrapper.base_layer)
