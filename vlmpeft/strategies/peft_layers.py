"""PEFT's own tuners, put onto exactly the planned modules of one component."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.private_apis import CONVERT_CONFIG, PEFT_PREFIXES, PEFT_TUNERS
from vlmpeft.strategies.contract import Attachment, Component, Strategy
from vlmpeft.strategies.deltas import wrapper_deltas


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
    model, name = component.model, type(strategy).__name__
    before = {parameter for _, parameter in model.named_parameters()}
    earlier = {n for n, module in model.named_modules() if _is_wrapped(module)}
    tuner_class = PEFT_TUNERS.get()[config.peft_type]
    try:
        with _targets_as_given():
            tuner = tuner_class(model, config, adapter_name)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        unwrap(model, [target for target in targets if _is_wrapped(model.get_submodule(target))])
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name} on {component.name}: {reason}") from error
    finally:
        vars(model).pop("peft_config", None)  # would make the next component's tuner warn
    prefix = PEFT_PREFIXES.get()[config.peft_type]
    new = {n: p for n, p in model.named_parameters() if p not in before}
    # not all that is new is trained: AdaLoRA keeps a number of ranks as well
    trainable = tuple(n for n in new if any(part.startswith(prefix) for part in n.split(".")))
    _check_wrapped(component, targets, adapter_name, earlier)
    if problem := _fails_on_quantized(model, targets):
        unwrap(model, targets)
        raise UserError(
            f"{name} on {component.name}: PEFT's {config.peft_type.value} does not work on quantized layers ({problem}); "
            f"set model.base.bits.{component.name} to bf16 or fp32, or use LoRA"
        )
    attachment = Attachment(
        component.name,
        strategy,
        targets=tuple(targets),
        trainable=trainable,
        added=sum(parameter.numel() for parameter in new.values()),
        detach=lambda: unwrap(model, targets),
        deltas=lambda: wrapper_deltas(model, targets),
    )
    return attachment, tuner


def _targets_as_given() -> AbstractContextManager[None]:
    """Keep PEFT from rewriting exact names.

    Of a type whose experts transformers 5 has fused (GLM-4.5V, Kimi K2.5), PEFT takes every target that ends in
    `gate_proj` for the experts, the tower's and the dense layers' too, and drops it from `target_modules`.
    """
    return CONVERT_CONFIG.replaced(lambda *_, **__: None)


def plain_peft_keeps_targets(model: nn.Module, config: Any) -> bool:
    """Whether PEFT, loading a config by itself, wraps the modules it names; see `_targets_as_given`."""
    loaded = copy.deepcopy(config)
    try:
        CONVERT_CONFIG.get()(loaded, model, None)
    except ValueError:
        return False
    return set(loaded.target_modules) == set(config.target_modules)


def _check_wrapped(
    component: Component, targets: Sequence[str], adapter_name: str, earlier: set[str]
) -> None:
    wrapped = {
        name
        for name, module in component.model.named_modules()
        if _is_wrapped(module)
        and adapter_name in _adapters(module)
        and component.components.component_of(name) == component.name
    }
    assert wrapped - earlier == set(targets), (
        wrapped ^ {*targets, *earlier},
        "PEFT wrapped other modules than planned",
    )


@torch.no_grad()
def _fails_on_quantized(model: nn.Module, targets: Sequence[str]) -> str:
    """What happens when one quantized layer of each size is run; empty if all is well.

    Methods that read the packed weight as if it were the matrix fail, or take its shape for the layer's.
    """
    tried: set[tuple[int, int]] = set()
    for name in targets:
        wrapper: Any = model.get_submodule(name)
        layer = wrapper.base_layer
        size = (layer.in_features, layer.out_features)
        if layer.weight.is_floating_point() or layer.weight.device.type == "meta" or size in tried:
            continue
        tried.add(size)
        try:
            wrapper(torch.zeros(1, layer.in_features, device=layer.weight.device))
        except (RuntimeError, ValueError, TypeError) as error:
            return str(error).strip().splitlines()[0]
    return ""


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
