"""AdaLoRA: a budget of singular values that moves to where it matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, StepHooks, Strategy
from vlmpeft.strategies.peft_layers import attach_tuner

_GATHERED = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of PEFT's RankAllocator
_UNKNOWN = 10**9  # steps, until the trainer says how many there are


@dataclass(frozen=True)
class AdaLoRA(Strategy):
    """W x + (alpha / r) P diag(s) Q x; singular values s of little importance are set to zero, step by step.

    Zhang et al. 2023 (arXiv:2303.10512, eq. 3, 6 and algorithm 1). The budget really is allocated: after every
    optimizer step, with the gradients of that step, and the orthogonality of P and Q is part of the loss.
    init_r (d_in + d_out + 1) parameters a target, of which target_r a target stay on average.

    Args:
        target_r: average rank at the end.
        init_r: rank of every target at the start.
        alpha: numerator of the scale.
        dropout: probability of zeroing an input while training.
        warmup: share of the steps before anything is pruned.
        final: share of the steps after the last pruning.
        every: steps between two allocations.
        orthogonality: weight of |P'P - I| + |QQ' - I| in the loss.
        targets: as of LoRA.
        learning_rate: as of LoRA, or a little more.
    """

    target_r: int = 8
    init_r: int = 12
    alpha: float = 16
    dropout: float = 0.0
    warmup: float = 0.1
    final: float = 0.3
    every: int = 1
    orthogonality: float = 0.1
    targets: tuple[str, ...] | None = None
    learning_rate: float = 5e-4

    def __post_init__(self) -> None:
        if not 1 <= self.target_r <= self.init_r:
            raise UserError(
                f"AdaLoRA target_r={self.target_r}, init_r={self.init_r}: 1 <= target_r <= init_r"
            )
        if min(self.warmup, self.final) < 0 or self.warmup + self.final >= 1:
            raise UserError(
                f"AdaLoRA warmup={self.warmup}, final={self.final}: shares of the steps, together below 1"
            )

    def attach(self, component: Component) -> Attachment:
        from peft import AdaLoraConfig

        targets = list(component.match_linears(self.targets))
        config = AdaLoraConfig(
            init_r=self.init_r,
            target_r=self.target_r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            deltaT=self.every,
            total_step=_UNKNOWN,
            target_modules=targets,
        )
        # PEFT finds AdaLoRA's tensors by "lora_" and this name: no other tensor's name may hold both
        name = f"budget_{component.name}"
        attachment, tuner = attach_tuner(self, component, config, targets, name)
        hooks = StepHooks(
            penalty=self._penalty(component, attachment.trainable),
            schedule=self._schedule(tuner),
            after_step=tuner.update_and_allocate,
            state=lambda: _state(tuner),
            load_state=lambda state: _load_state(tuner, state),
        )
        return replace(attachment, hooks=hooks)

    def _schedule(self, tuner: Any) -> Callable[[int], None]:
        """Tells PEFT's allocator how many steps there will be."""

        def set_total(steps: int) -> None:
            config = tuner.rankallocator.peft_config
            config.tinit, config.tfinal = int(self.warmup * steps), int(self.final * steps)
            # PEFT fails where the first step is the one that makes the budget final
            tuner.rankallocator.set_total_step(max(2, steps))

        return set_total

    def _penalty(self, component: Component, trainable: tuple[str, ...]) -> Callable[[], Tensor]:
        """As in PEFT's forward, which is not called here."""

        def penalty() -> Tensor:
            terms = []
            for name in trainable:
                if ".lora_A." in name or ".lora_B." in name:
                    matrix = component.model.get_parameter(name)
                    gram = matrix @ matrix.T if ".lora_A." in name else matrix.T @ matrix
                    terms.append(torch.linalg.norm(gram - torch.eye(len(gram)).to(gram)))
            return self.orthogonality * torch.stack(terms).mean()

        return penalty


def _state(tuner: Any) -> dict[str, Any]:
    """The importance gathered so far, and which singular values are out."""
    allocator = tuner.rankallocator
    gathered = {name: dict(getattr(allocator, name)) for name in _GATHERED}
    return gathered | {"rank_pattern": dict(allocator.peft_config.rank_pattern or {})}


def _load_state(tuner: Any, state: dict[str, Any]) -> None:
    for name in _GATHERED:
        setattr(tuner.rankallocator, name, dict(state[name]))
    tuner.rankallocator.peft_config.rank_pattern = state["rank_pattern"]
