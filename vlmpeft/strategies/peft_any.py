"""Any method PEFT can put onto modules, by the name of its config."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmpeft.errors import UserError, did_you_mean
from vlmpeft.strategies.base import Attachment, Component, Strategy
from vlmpeft.strategies.peft_layers import attach_tuner


@dataclass(frozen=True)
class Peft(Strategy):
    """A PEFT config by class path, on the modules of this component alone: OFT, BOFT, HRA, LoHa, LoKr, FourierFT, ...

    Args:
        config: class path, e.g. peft.LoHaConfig.
        args: its arguments, without target_modules.
        targets: as of LoRA.
        learning_rate: of everything it adds.
    """

    config: str = "peft.LoHaConfig"
    args: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    learning_rate: float = 2e-4

    def attach(self, component: Component) -> Attachment:
        targets = list(component.match_linears(self.targets))
        config = self._build(targets)
        attachment, _ = attach_tuner(self, component, config, targets)
        return attachment

    def _build(self, targets: list[str]) -> Any:
        module, _, name = self.config.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module or "peft"), name)
        except (ImportError, AttributeError) as error:
            import peft

            known = [n for n in dir(peft) if n.endswith("Config")]
            raise UserError(
                f"Peft config={self.config}: no such class.{did_you_mean(name, known)}"
            ) from error
        try:
            config = cls(target_modules=targets, **self.args)
        except (TypeError, ValueError) as error:
            raise UserError(f"Peft config={self.config}: {error}") from error
        if getattr(config, "is_prompt_learning", False):
            raise UserError(
                f"Peft config={self.config} is about prompts, not modules; use PromptTuning or PrefixTuning"
            )
        return config
