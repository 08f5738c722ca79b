"""Any method PEFT can put onto modules, by the name of its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.private_apis import PEFT_CONFIGS
from vlmpeft.strategies.contract import Attachment, Component, Strategy
from vlmpeft.strategies.peft_layers import attach_tuner

# of LoraConfig: PEFT imports the module that megatron_core names; of all configs: the library of the base's class
_NAMES_CODE = ("megatron_core", "megatron_config", "auto_mapping")


@dataclass(frozen=True)
class Peft(Strategy):
    """A PEFT config by class path, on the modules of this component alone: OFT, BOFT, HRA, LoHa, LoKr, FourierFT, ...

    Args:
        config: class path of a config that PEFT has registered, e.g. peft.LoHaConfig. An adapter's manifest may name
            it, so nothing is imported for it.
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
        cls = _peft_config(self.config)
        if odd := [name for name in _NAMES_CODE if name in self.args]:
            raise UserError(
                f"Peft config={self.config}: args.{odd[0]} names code to be imported; leave it out"
            )
        try:
            config = cls(target_modules=targets, **self.args)
        except (TypeError, ValueError) as error:
            raise UserError(f"Peft config={self.config}: {error}") from error
        if getattr(config, "is_prompt_learning", False):
            raise UserError(
                f"Peft config={self.config} is about prompts, not modules; use PromptTuning or PrefixTuning"
            )
        return config


def _peft_config(path: str) -> Any:
    """The config class of a path, among those that PEFT knows.

    Raises:
        UserError: there is none, with the closest there is.
    """
    known = {cls.__name__: cls for cls in PEFT_CONFIGS.get().values()}
    module, _, name = path.rpartition(".")
    cls = known.get(name)
    if cls is None or module not in ("", "peft", cls.__module__):
        raise UserError(f"Peft config={path}: no such class in PEFT.{did_you_mean(name, known)}")
    return cls
