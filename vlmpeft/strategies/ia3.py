"""IA3: learned vectors that rescale keys, values and feed-forward activations."""

from __future__ import annotations

from dataclasses import dataclass

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, Strategy, names_module
from vlmpeft.strategies.peft_layers import attach_tuner

# what keys, values and the second feed-forward layer are called in transformers' models
_KEYS_VALUES = ("k_proj", "v_proj", "key", "value")
_FEEDFORWARD = ("down_proj", "fc2", "w2", "o_proj_ffn", "linear_fc2", "output.dense")


@dataclass(frozen=True)
class IA3(Strategy):
    """y = l * (W x) on keys and values, y = W (l * x) on the feed-forward's second layer, l starting at 1.

    Liu et al. 2022 (arXiv:2205.05638, section 3.3); d_out parameters a key or value, d_in a feed-forward target.

    Args:
        targets: layers whose outputs are rescaled; null takes keys, values by their usual names.
        feedforward: layers whose inputs are rescaled; null takes the usual names (down_proj, fc2, ...).
        learning_rate: larger than for matrices: there are few numbers and they start at 1.
    """

    targets: tuple[str, ...] | None = None
    feedforward: tuple[str, ...] | None = None
    learning_rate: float = 3e-3

    def attach(self, component: Component) -> Attachment:
        from peft import IA3Config

        outputs = self._match(component, self.targets, _KEYS_VALUES)
        inputs = self._match(component, self.feedforward, _FEEDFORWARD)
        if not outputs and not inputs:
            have = dict.fromkeys(name.rsplit(".", 1)[-1] for name in component.linears())
            raise UserError(
                f"IA3 on {component.name}: no keys, values or feed-forward by their usual names; name them: "
                f"targets, feedforward; it has {', '.join(have)}"
            )
        targets = list(dict.fromkeys((*outputs, *inputs)))
        config = IA3Config(target_modules=targets, feedforward_modules=inputs)
        attachment, _ = attach_tuner(self, component, config, targets)
        return attachment

    def _match(
        self, component: Component, given: tuple[str, ...] | None, usual: tuple[str, ...]
    ) -> list[str]:
        if given is not None:
            return list(component.match_linears(given)) if given else []
        return [n for n in component.linears() if any(names_module(name, n) for name in usual)]
