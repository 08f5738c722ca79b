"""A merge of adapters as what is done to a component."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.base.components import PLANNED
from vlmpeft.merging.engine import merge
from vlmpeft.merging.operands import check_own, read_operand
from vlmpeft.merging.recipe import KNOBS, Recipe
from vlmpeft.merging.rule_table import RuleName, Scope
from vlmpeft.merging.sparse import Majority
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import Attachment, Component, Strategy
from vlmpeft.strategies.deltas import add_deltas
from vlmpeft.strategies.low_rank import dense

_DEEPEST = (
    3  # merges of adapters that hold merges themselves; one that names itself would never end
)


@dataclass(frozen=True)
class Merged(Strategy):
    """Base weights plus the merged dW of several adapters' parts on this component; nothing is trained.

    Each adapter is put on, its dW taken, and taken off again; unequal ranks, targets and strategies combine. What
    has no dW (prompts, a bottleneck) combines in its own parameters where all adapters have the same there, and is
    refused by name otherwise.

    Args:
        adapters: folders that `fit` wrote for this base.
        rule: how they are merged.
        weights: one an adapter.
        density: as of `merge`: share of each adapter's values that is kept.
        lam: scale of the result.
        majority: of ties, dare_ties and della.
        gamma: of breadcrumbs.
        epsilon: of della.
        scope: component or tensor: over what thresholds are taken.
        seed: of the rules that drop at random.
    """

    trains = False  # not annotated: see Strategy
    adapters: tuple[str, ...] = ()
    rule: RuleName = "ties"
    weights: tuple[float, ...] | None = None
    density: float | None = None
    lam: float | None = None
    majority: Majority | None = None
    gamma: float | None = None
    epsilon: float | None = None
    scope: Scope | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.adapters:
            raise UserError("Merged adapters=[]: give the folders of at least one adapter")
        if self.scope == "model":
            raise UserError(
                "Merged scope=model: it is on one component; take component, or write a merged adapter with the merge verb"
            )
        try:
            self.recipe()
        except UserError as error:
            raise UserError(f"Merged {error}".replace("with method", "with rule=")) from error

    def recipe(self) -> Recipe:
        """The same as the merge verb has it."""
        given = {name: getattr(self, name) for name in ("weights", *KNOBS, "scope", "seed")}
        return Recipe(method=self.rule, **given)

    def attach(self, component: Component) -> Attachment:
        adapters = _read_all(self.adapters)
        if next(component.model.parameters()).device.type == "meta":
            return Attachment(component.name, self, deltas=lambda: iter(()))
        operands = [
            read_operand(a, component.model, component.components, (component.name,))
            for a in adapters
        ]
        if own := check_own(operands, component.name):
            return self._attach_own(component, own, [o.own[component.name] for o in operands])
        merged = merge([o.deltas for o in operands], self.recipe(), lambda _: component.name)
        deltas = {name: dense(delta) for name, delta in merged}
        take_away = add_deltas(component.model, deltas)
        return Attachment(
            component.name,
            self,
            targets=tuple(dict.fromkeys(name.rpartition(".")[0] for name in deltas)),
            detach=take_away,
            deltas=lambda: iter(deltas.items()),
        )

    def _attach_own(
        self, component: Component, strategies: list[Strategy], parts: list[dict[str, Tensor]]
    ) -> Attachment:
        """The strategies themselves, with merged parameters."""
        merged = dict(merge(parts, self.recipe(), lambda _: component.name))
        attachments = [strategy.attach(component) for strategy in strategies]
        parameters = dict(component.model.named_parameters())
        with torch.no_grad():
            for name, value in merged.items():
                parameters[name].copy_(dense(value))

        def detach() -> None:
            for attachment in reversed(attachments):
                attachment.detach()

        first = replace(attachments[0], strategy=self, trainable=(), detach=detach, deltas=None)
        return replace(
            first,
            targets=tuple(t for a in attachments for t in a.targets),
            added=sum(a.added for a in attachments),
            peft=None,
        )


def _read_all(folders: tuple[str, ...], depth: int = 1) -> list[Adapter]:
    """Read adapters, and look at those that their own merges name.

    Raises:
        UserError: merges within merges too deep to have an end.
    """
    if depth > _DEEPEST:
        raise UserError(
            f"Merged adapters: {folders[0]} is named by merges within merges, {_DEEPEST} deep, or by itself; merge those "
            "into an adapter of their own first: merge --adapters ... --out DIR"
        )
    adapters = [Adapter.read(folder) for folder in folders]
    for plan in (adapter.plan for adapter in adapters):
        for strategy in (s for name in PLANNED for s in plan.of(name)):
            if isinstance(strategy, Merged):
                _read_all(strategy.adapters, depth + 1)
    return adapters
