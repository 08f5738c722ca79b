"""What a plan comes to on a base, without its weights: legal or not, and how many parameters it trains."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from vlmpeft.base.components import Components, count_by_component, find_components
from vlmpeft.base.loading import meta_model
from vlmpeft.base.spec import QUANTIZED, BaseSpec, resolve_bits
from vlmpeft.preflight.servability import Engine, check_servable
from vlmpeft.preflight.static_memory import weight_widths
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import Frozen
from vlmpeft.strategies.plan import Plan, attach, check_has_trainables
from vlmpeft.study.cells import IllegalCell


@dataclass(frozen=True)
class Size:
    """What a plan trains.

    Args:
        trainable: parameters.
        percent: of base and added ones.
        components: component -> trainable parameters.
    """

    trainable: int
    percent: float
    components: dict[str, int]


class MetaBase:
    """A base of which every plan is tried on the meta device, one after the other.

    Its quantized weights are whole numbers, as in memory, so that what cannot train them or start from them refuses here.

    Args:
        spec: the base and its bits.
        device: where it will be held; it decides what `auto` is.

    Raises:
        UserError: a base that cannot be read.
        IllegalCell: bits that the device cannot hold.
    """

    def __init__(self, spec: BaseSpec, device: torch.device):
        self.spec = spec
        try:
            resolve_bits(spec.bits, device)
        except UserError as error:
            raise IllegalCell(str(error)) from error
        self.model: Any = meta_model(spec)
        self.components: Components = find_components(self.model)
        self._quantize(device)
        self._sizes: dict[str, Size | str] = {}

    def _quantize(self, device: torch.device) -> None:
        """Put whole numbers of the same shape in the place of each weight that would be quantized."""
        widths = weight_widths(self.model, self.components, self.spec, device)
        for module in self.model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, nn.Linear) and widths.get(weight) in QUANTIZED:  # type: ignore[arg-type]
                packed = torch.empty(weight.shape, dtype=torch.int8, device="meta")  # type: ignore[union-attr]
                module.weight = nn.Parameter(packed, requires_grad=False)

    @property
    def parameters(self) -> int:
        """Of the base, tied ones once."""
        return sum(count_by_component(self.model, self.components).values())

    def size(self, plan: Plan, engine: Engine | None = None) -> Size:
        """What a plan trains here; the base is afterwards as it was.

        Args:
            plan: tried once, then remembered.
            engine: that has to load what it leaves.

        Raises:
            IllegalCell: the base does not allow it, the engine cannot load it, or it trains nothing.
        """
        key = f"{engine} {plan!r}"
        if key not in self._sizes:
            self._sizes[key] = self._tried(plan, engine)
        found = self._sizes[key]
        if isinstance(found, str):
            raise IllegalCell(found)
        return found

    def count(self, plan: Plan) -> int:
        """Trainable parameters of a plan, which may be none.

        Raises:
            IllegalCell: the base does not allow it.
        """
        is_idle = all(
            isinstance(one, Frozen) for part in fields(plan) for one in plan.of(part.name)
        )
        return 0 if is_idle else self.size(plan).trainable

    def _tried(self, plan: Plan, engine: Engine | None) -> Size | str:
        try:
            attached = attach(plan, self.model, self.components)
        except UserError as error:
            return str(error)
        try:
            check_has_trainables(attached)
            if engine:
                check_servable(attached, engine)
            summary = attached.summary()
        except UserError as error:
            return str(error)
        finally:
            attached.detach()
        by_component = {name: one["trainable"] for name, one in summary["components"].items()}
        return Size(summary["trainable"], summary["percent"], by_component)
