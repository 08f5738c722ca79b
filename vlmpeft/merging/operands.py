"""What adapters bring to a merge: dW of their parts, or the trained tensors themselves where there is no dW."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlmpeft.adapters.adapter import Adapter, Origin
from vlmpeft.adapters.loading import load_part
from vlmpeft.base.components import PLANNED, Components
from vlmpeft.base.fingerprint import origin
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import Frozen, LoRA, Strategy
from vlmpeft.strategies.low_rank import Delta
from vlmpeft.strategies.plan import AttachedPlan, Plan, attach

FACTORS_ONLY = (
    "default",
    "gaussian",
    "orthogonal",
    "loftq",
)  # starts that leave the base's weight alone


@dataclass(frozen=True)
class Operand:
    """One adapter, taken off the model again.

    Args:
        adapter: as it was read.
        deltas: base parameter -> dW.
        own: component -> trained tensor's name -> tensor, of components whose strategies are no change of weights.
    """

    adapter: Adapter
    deltas: dict[str, Delta]
    own: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return self.adapter.folder

    def strategies(self, component: str) -> list[Strategy]:
        """What it has on a component, without Frozen."""
        return [s for s in self.adapter.plan.of(component) if not isinstance(s, Frozen)]


def needs_base(plan: Plan) -> bool:
    """Whether dW depends on the base's weights: of a LoRA it is the product of its factors."""
    strategies = [s for name in PLANNED for s in plan.of(name) if not isinstance(s, Frozen)]
    return not all(type(s) is LoRA and s.init in FACTORS_ONLY for s in strategies)


def read_operand(
    adapter: Adapter,
    model: Any,
    components: Components,
    only: Sequence[str] = PLANNED,
) -> Operand:
    """Put an adapter on a model, take what it brings, and take it off again.

    Args:
        adapter: what is put on.
        model: its base; on the meta device if the plan does not need it.
        components: of the model.
        only: components to look at.

    Raises:
        UserError: it does not fit, or a component mixes strategies with and without dW.
    """
    plan = adapter.plan
    attached = attach(Plan(**{name: plan.of(name) for name in only}), model, components)
    try:
        give_memory(attached)
        load_part(adapter, attached)
        own = {name: t for name in only if (t := _own_tensors(attached, name, adapter.folder))}
        kept = [a for a in attached.attachments if a.component not in own]
        weights = AttachedPlan(plan, model, components, kept)
        return Operand(adapter, weights.products(), own)
    finally:
        attached.detach()


def base_of_merge(first: Adapter, base: str | None) -> Origin:
    """What the merged adapter says of the base that a merge is for.

    Args:
        first: the first adapter; its word is taken unless `base` is another base.
        base: where the base is; None is where the first adapter says.
    """
    said = first.manifest.base
    if base in (None, said.id):
        return said
    found = Origin.from_dict(origin(first.trained_base(base)))
    return said if found.fingerprint == said.fingerprint else found


def check_one_base(adapters: Sequence[Adapter], here: Origin, base: str | None) -> None:
    """Raise a UserError for the first adapter that was trained on another base than the merge is for."""
    whose = f"--base {base}" if base else f"the base of adapter {adapters[0].folder}"
    for adapter in adapters:
        own = adapter.manifest.base
        if own.fingerprint != here.fingerprint:
            raise UserError(
                f"adapter {adapter.folder} was trained on {own.id} (fingerprint {own.fingerprint}) and the merge is for "
                f"{here.id} ({here.fingerprint}), {whose}: dW of different bases do not add up; "
                "--allow_base_mismatch merges them all the same and shows how each scores on both"
            )


@contextmanager
def bases_named(own: str, here: str) -> Iterator[None]:
    """Errors of an adapter that is put on another base than its own say so.

    Args:
        own: id of the base it was trained on.
        here: id of the base it is put on.
    """
    try:
        yield
    except UserError as error:
        if own == here:
            raise
        raise UserError(f"{error}; it is of base {own}, and the merge is for {here}") from error


def _own_tensors(attached: AttachedPlan, component: str, folder: str) -> dict[str, Tensor]:
    """The trained tensors of a component whose strategies have no dW; none if they have."""
    here = [a for a in attached.attachments if a.component == component and a.trainable]
    without = [a for a in here if a.deltas is None]
    if without and len(without) < len(here):
        kinds = " and ".join(type(a.strategy).__name__ for a in here)
        raise UserError(
            f"adapter {folder}: {kinds} on {component}: {type(without[0].strategy).__name__} is no change of weights "
            "and the other is; such a pair cannot be merged"
        )
    tensors = attached.trainable()
    return {name: tensors[name].detach().clone() for a in without for name in a.trainable}


def give_memory(attached: AttachedPlan) -> None:
    """Replace trained parameters on the meta device by ones that can hold values."""
    for name, parameter in attached.trainable().items():
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            real = nn.Parameter(torch.zeros(parameter.shape, dtype=torch.float32))
            attached.model.get_submodule(owner).register_parameter(leaf, real)


def check_own(operands: Sequence[Operand], component: str) -> list[Strategy]:
    """The strategies whose own parameters are merged on a component; empty if it is merged in dW.

    Raises:
        UserError: the adapters have different ones there.
    """
    active = [o for o in operands if o.strategies(component)]
    odd = next((o for o in active if component in o.own), None)
    if odd is None:
        return []
    wanted = odd.strategies(component)
    kind = type(wanted[0]).__name__
    for other in active:
        if not _alike(other.strategies(component), wanted) or _shapes(
            other.own, component
        ) != _shapes(odd.own, component):
            raise UserError(
                f"{kind} on {component} is no change of weights, so it has no dW to merge, and adapters {odd.folder} "
                f"and {other.folder} do not have the same there; merge adapters with the same {kind}"
            )
    if len(active) < len(operands):
        idle = next(o for o in operands if o not in active)
        raise UserError(
            f"{kind} on {component} is no change of weights, so it has no dW to merge, and adapter {idle.folder} has "
            f"nothing there; merge adapters that all have it"
        )
    return wanted


def _alike(first: list[Strategy], second: list[Strategy]) -> bool:
    return [type(s) for s in first] == [type(s) for s in second]


def _shapes(own: Mapping[str, Mapping[str, Tensor]], component: str) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in own.get(component, {}).items()}
