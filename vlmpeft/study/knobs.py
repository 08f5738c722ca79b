"""The knob of a strategy that its size grows with: rank, width or number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vlmpeft.strategies import (
    AdaLoRA,
    BottleneckAdapter,
    LoRA,
    PrefixTuning,
    PromptTuning,
    Strategy,
)


@dataclass(frozen=True)
class Knob:
    """How a strategy is made larger or smaller.

    Args:
        name: of the field.
        turned: (strategy, value of the knob) -> the strategy at this value.
    """

    name: str
    turned: Callable[[Any, int], Strategy]


def knob_of(strategy: Strategy) -> Knob | None:
    """The knob of a strategy; None if its size is the base's to say, as VeRA's nearly is: d_out + r a target."""
    return next((knob for kind, knob in _KNOBS if isinstance(strategy, kind)), None)


def _lora(one: LoRA, r: int) -> LoRA:
    """Alpha keeps its ratio to r."""
    return replace(one, r=r, alpha=one.alpha if one.alpha == "auto" else one.alpha * r / one.r)


def _adalora(one: AdaLoRA, r: int) -> AdaLoRA:
    """All of init_r is trained; the final rank and alpha keep their ratio to it."""
    target = min(r, max(1, round(one.target_r * r / one.init_r)))
    return replace(one, init_r=r, target_r=target, alpha=one.alpha * r / one.init_r)


def _bottleneck(one: BottleneckAdapter, width: int) -> BottleneckAdapter:
    usual = BottleneckAdapter.reduction  # another one would have no effect beside a width
    return replace(one, width=width, reduction=usual)


_KNOBS = (
    (LoRA, Knob("r", _lora)),  # and DoRA
    (AdaLoRA, Knob("init_r", _adalora)),
    (BottleneckAdapter, Knob("width", _bottleneck)),
    (PromptTuning, Knob("n", lambda one, n: replace(one, n=n))),
    (PrefixTuning, Knob("n", lambda one, n: replace(one, n=n))),
)
