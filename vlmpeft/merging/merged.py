"""A merge of adapters as what is done to a component."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlmpeft.adapters import adapter_plan, component_deltas
from vlmpeft.errors import UserError
from vlmpeft.merging import rules
from vlmpeft.strategies import Attachment, Component, Strategy
from vlmpeft.strategies.deltas import add_deltas

RULES: dict[str, Callable[..., Tensor]] = {
    name: getattr(rules, name) for name in ("average", "linear", "task_arithmetic", "ties")
}


@dataclass(frozen=True)
class Merged(Strategy):
    """Base weights plus the merged dW of several adapters' parts on this component; nothing is trained.

    Each adapter is put on, its dW taken, and taken off again; unequal ranks, targets and strategies combine. What
    has no dW (prompts, a bottleneck) is refused by name.

    Args:
        adapters: folders that `fit` wrote for this base.
        rule: how they are merged.
        weights: one an adapter.
        density: of ties: share of each adapter's values that is kept, over the whole component.
        lam: of task_arithmetic and ties: scale of the result.
    """

    trains = False
    adapters: tuple[str, ...] = ()
    rule: Literal["average", "linear", "task_arithmetic", "ties"] = "ties"
    weights: tuple[float, ...] | None = None
    density: float | None = None
    lam: float | None = None

    def __post_init__(self) -> None:
        if not self.adapters:
            raise UserError("Merged adapters=[]: give the folders of at least one adapter")
        if self.rule not in RULES:
            raise UserError(f"Merged rule={self.rule}: it is one of {', '.join(RULES)}")
        known = inspect.signature(RULES[self.rule]).parameters
        for knob in self._knobs():
            if knob not in known:
                raise UserError(
                    f"Merged {knob}={getattr(self, knob)} has no effect with rule={self.rule}; leave it out"
                )

    def _knobs(self) -> dict[str, Any]:
        """What was said, beside the rule."""
        given = {name: getattr(self, name) for name in ("weights", "density", "lam")}
        return {name: value for name, value in given.items() if value is not None}

    def attach(self, component: Component) -> Attachment:
        if next(component.model.parameters()).device.type == "meta":
            for adapter in self.adapters:
                adapter_plan(adapter)
            return Attachment(component.name, self, deltas=lambda: iter(()))
        parts = [component_deltas(adapter, component) for adapter in self.adapters]
        deltas = self.merge(parts)
        take_away = add_deltas(component.model, deltas)
        return Attachment(
            component.name,
            self,
            targets=tuple(dict.fromkeys(name.rpartition(".")[0] for name in deltas)),
            detach=take_away,
            deltas=lambda: iter(deltas.items()),
        )

    def merge(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One dW a parameter, over all parameters that any adapter changes."""
        shapes = {name: delta.shape for part in parts for name, delta in part.items()}
        if not shapes:
            return {}
        stacked = torch.stack([_flat(part, shapes) for part in parts])  # (T, D)
        merged = RULES[self.rule](stacked, **self._knobs())
        pieces = merged.split([shape.numel() for shape in shapes.values()])
        return {
            name: piece.view(shape)
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }


def _flat(part: dict[str, Tensor], shapes: dict[str, torch.Size]) -> Tensor:
    """(D,) with zeros where an adapter changes nothing."""
    return torch.cat(
        [
            part[n].flatten().cpu() if n in part else torch.zeros(s).flatten()
            for n, s in shapes.items()
        ]
    )
