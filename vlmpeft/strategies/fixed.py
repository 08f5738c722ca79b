"""Strategies that add nothing: train every weight of a component, or none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vlmpeft.errors import UserError
from vlmpeft.strategies.base import Attachment, Component, PeftPart, Strategy


@dataclass(frozen=True)
class Frozen(Strategy):
    """Leave the component as it is."""

    def attach(self, component: Component) -> Attachment:
        return Attachment(component.name, self)


@dataclass(frozen=True)
class Full(Strategy):
    """Train every weight of the component, in fp32.

    Args:
        learning_rate: LLaVA's projector rate beside a LoRA on the language model (LLaVA-1.5's own LoRA script).
    """

    learning_rate: float = 2e-5

    def attach(self, component: Component) -> Attachment:
        parameters = component.parameters()
        _refuse_quantized(component.name, parameters)
        originals = {name: parameter.data for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.data = parameter.data.to(torch.float32, copy=True)

        def detach() -> None:
            for name, parameter in parameters.items():
                parameter.data = originals[name]
                parameter.grad = None
                parameter.requires_grad_(False)

        return Attachment(
            component.name,
            self,
            targets=component.roots,
            trainable=tuple(parameters),
            detach=detach,
            peft=_peft_part(component),
        )


def _refuse_quantized(name: str, parameters: dict[str, nn.Parameter]) -> None:
    quantized = [n for n, p in parameters.items() if not p.is_floating_point()]
    if quantized:
        raise UserError(
            f"Full on {name}: {len(quantized)} of its tensors are quantized (first: {quantized[0]}) and cannot "
            f"be trained; set model.base.bits.{name} to bf16 or fp32, or use LoRA"
        )


def _peft_part(component: Component) -> PeftPart | None:
    """modules_to_save, unless a root is a bare parameter or shares a tensor with what lies outside.

    PEFT copies a saved module, so a tied head would go on with the old tensor, silently.
    """
    modules = dict(component.model.named_modules())
    inside = {
        id(p) for root in component.roots if root in modules for p in modules[root].parameters()
    }
    tied = [
        name
        for name, parameter in component.model.named_parameters(remove_duplicate=False)
        if id(parameter) in inside and component.components.component_of(name) != component.name
    ]
    config = getattr(component.model, "config", None)
    tied_head = component.name == "language" and getattr(config, "tie_word_embeddings", False)
    if tied or tied_head or any(root not in modules for root in component.roots):
        return None
    return PeftPart(modules_to_save=component.roots)
