"""Strategies that add nothing: train every weight of a component, or none."""

from __future__ import annotations

from dataclasses import dataclass

from vlmpeft.strategies.contract import Attachment, Component, PeftPart, Strategy
from vlmpeft.strategies.selected import refuse_quantized, train_in_place


@dataclass(frozen=True)
class Frozen(Strategy):
    """Leave the component as it is."""

    def attach(self, component: Component) -> Attachment:
        return Attachment(component.name, self, deltas=lambda: iter(()))


@dataclass(frozen=True)
class Full(Strategy):
    """Train every weight of the component, in fp32.

    Args:
        learning_rate: LLaVA's projector rate beside a LoRA on the language model (LLaVA-1.5's own LoRA script).
    """

    learning_rate: float = 2e-5

    def attach(self, component: Component) -> Attachment:
        parameters = component.parameters()
        refuse_quantized(self, component.name, parameters)
        detach, deltas = train_in_place(parameters)
        return Attachment(
            component.name,
            self,
            targets=component.roots,
            trainable=tuple(parameters),
            detach=detach,
            deltas=deltas,
            peft=_peft_part(component),
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
