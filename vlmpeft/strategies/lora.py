"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) through PEFT's own layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from vlmpeft.errors import UserError
from vlmpeft.strategies.base import Attachment, Component, PeftPart, Strategy


@dataclass(frozen=True)
class LoRA(Strategy):
    """W x + (alpha / r) B A x with A (r, d_in) random and B (d_out, r) zero (LoRA, eq. 3).

    Args:
        r: rank; r (d_in + d_out) parameters a target.
        alpha: numerator of the scale; auto is 2 r.
        dropout: probability of zeroing an input of A while training.
        targets: linear layers of the component, by last name part, full path or glob; null is all of
            them but the output head.
        learning_rate: about ten times what full fine-tuning takes.
    """

    r: int = 16
    alpha: float | Literal["auto"] = "auto"
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"LoRA r={self.r}: the rank is at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"LoRA dropout={self.dropout}: a probability below 1")

    @property
    def scaled_alpha(self) -> float:
        return 2 * self.r if self.alpha == "auto" else self.alpha

    def attach(self, component: Component) -> Attachment:
        from peft import LoraConfig, inject_adapter_in_model

        targets = tuple(component.match_linears(self.targets))
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.scaled_alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=list(targets),
        )  # type: ignore[call-arg]
        inject_adapter_in_model(config, component.model)
        del component.model.peft_config  # left by PEFT; would make the next component's call warn
        trainable = tuple(
            name
            for name, _ in component.model.named_parameters()
            if ".lora_" in name and component.components.component_of(name) == component.name
        )
        wrapped = {
            name for name, module in component.model.named_modules() if hasattr(module, "lora_A")
        }
        inside = {
            name for name in wrapped if component.components.component_of(name) == component.name
        }
        assert inside == set(targets), (
            inside ^ set(targets),
            "PEFT wrapped other modules than planned",
        )
        settings = {"r": self.r, "alpha": self.scaled_alpha}
        return Attachment(
            component.name,
            self,
            targets=targets,
            trainable=trainable,
            added=sum(component.model.get_parameter(name).numel() for name in trainable),
            detach=lambda: unwrap(component.model, targets),
            peft=PeftPart(lora=dict.fromkeys(targets, settings)),
        )


def unwrap(model: nn.Module, targets: tuple[str, ...]) -> None:
    """Put the original layer back in the place of each PEFT wrapper."""
    for name in targets:
        parent, _, leaf = name.rpartition(".")
        wrapper = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, wrapper.base_layer)
