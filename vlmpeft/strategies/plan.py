"""The strategies of all components, and what they come to on a given model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from vlmpeft.base.components import PLANNED, Components, count_by_component
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.registry import STRATEGIES, resolve, saved_class, short_name
from vlmpeft.runtime.typed_values import check_values
from vlmpeft.strategies import Attachment, Component, Frozen, Strategy
from vlmpeft.strategies.low_rank import Delta, dense

Strategies = Strategy | list[Strategy]


@dataclass(frozen=True)
class Plan:
    """What is done to each component.

    Args:
        vision: strategy (or list of strategies) of the image tower.
        projector: of everything on the way from the tower to the language model.
        language: of decoder, token embeddings and output head.
    """

    vision: Strategies = Frozen()
    projector: Strategies = Frozen()
    language: Strategies = Frozen()

    def of(self, component: str) -> list[Strategy]:
        """The strategies of one component, in order of attachment."""
        value = getattr(self, component)
        return list(value) if isinstance(value, (list, tuple)) else [value]

    def untrained(self) -> Plan:
        """What of the plan there is before any training: merges stay."""
        return Plan(*([s for s in self.of(f.name) if not s.trains] for f in fields(self)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: component -> [{class_path, init_args}]."""
        return {
            field.name: [
                {
                    "class_path": short_name(type(strategy), STRATEGIES),
                    "init_args": _init_args(strategy),
                }
                for strategy in self.of(field.name)
            ]
            for field in fields(self)
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """The inverse of `to_dict`; JSON lists become tuples again.

        Raises:
            UserError: a name that stands for no strategy (see `registry.saved_class`), or values it does not take.
        """
        return cls(
            **{
                component: [_saved_strategy(component, entry) for entry in entries]
                for component, entries in data.items()
            }
        )


ALLOW = "--allow_strategy"


def allow_strategies(names: Iterable[str]) -> None:
    """Import strategies of the user's own that an adapter may name (`--allow_strategy`).

    Raises:
        UserError: a name that cannot be imported, or is no strategy.
    """
    for name in names:
        cls = resolve(name, STRATEGIES)
        if not (isinstance(cls, type) and issubclass(cls, Strategy)):
            raise UserError(f"{ALLOW} {name}: it is not a vlmpeft.Strategy subclass")


def _saved_strategy(component: str, entry: dict[str, Any]) -> Strategy:
    name = entry["class_path"]
    cls = saved_class(name, STRATEGIES, Strategy, ALLOW)
    try:
        if (
            short_name(cls, STRATEGIES) in STRATEGIES
        ):  # of the user's own, the types are the user's business
            check_values(cls, entry["init_args"])
        return cls(**_tuples(entry["init_args"]))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} of {component}: {error}") from error


def _init_args(strategy: Any) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(strategy).items()}


def _tuples(init_args: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in init_args.items()}


@dataclass
class AttachedPlan:
    """A plan on a model: what each strategy left there."""

    plan: Plan
    model: nn.Module
    components: Components
    attachments: list[Attachment]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Full name -> parameter, of everything that is trained."""
        return {name: p for name, p, _ in self._trainable_with_attachment()}

    def _trainable_with_attachment(self) -> Iterator[tuple[str, nn.Parameter, Attachment]]:
        parameters = dict(self.model.named_parameters())
        for attachment in self.attachments:
            for name in attachment.trainable:
                yield name, parameters[name], attachment

    def parameter_groups(self, leave_out: Collection[str] = ()) -> list[dict[str, Any]]:
        """Optimizer groups: one per component and learning rate, without those to leave out."""
        groups: dict[tuple[str, float], dict[str, Any]] = {}
        for name, parameter, attachment in self._trainable_with_attachment():
            if name in leave_out:
                continue
            rate = getattr(attachment.strategy, "learning_rate", None)
            if rate is None:
                kind = type(attachment.strategy).__name__
                raise UserError(f"{kind} on {attachment.component} trains but has no learning_rate")
            rate *= attachment.rate_factors.get(name, 1.0)
            key = (attachment.component, rate)
            groups.setdefault(key, {"params": [], "lr": rate, "name": attachment.component})
            groups[key]["params"].append(parameter)
        return list(groups.values())

    def with_penalties(self, loss: Tensor, tokens: Tensor) -> Tensor:
        """A summed loss over `tokens` supervised tokens, with what strategies add to each token's."""
        for attachment in self.attachments:
            if attachment.hooks.penalty:
                loss = loss + tokens * attachment.hooks.penalty()
        return loss

    def deltas(self) -> dict[str, Tensor]:
        """Base parameter -> dW = adapted - base, fp32, of everything attached.

        Raises:
            UserError: something that is no change of weights.
        """
        return {name: dense(delta) for name, delta in self.products().items()}

    def products(self) -> dict[str, Delta]:
        """The same, with what a LoRA adds left as a product: its size is the adapter's, not the base's."""
        found: dict[str, Delta] = {}
        for attachment in self.attachments:
            if attachment.deltas is None:
                kind = type(attachment.strategy).__name__
                raise UserError(
                    f"{kind} on {attachment.component} is no change of weights, so it has no dW to merge; use the "
                    "adapter as it is"
                )
            for name, delta in attachment.deltas():
                found[name] = dense(found[name]) + dense(delta) if name in found else delta
        return found

    def detach(self) -> None:
        """Put the base back exactly as it was."""
        for attachment in reversed(self.attachments):
            attachment.detach()
        self.attachments = []

    def summary(self) -> dict[str, Any]:
        """The numbers of the plan; `percent` is 100 trainable / (base + added), the papers' convention."""
        base = count_by_component(self.model, self.components)
        added = dict.fromkeys(base, 0)
        for attachment in self.attachments:
            added[attachment.component] += attachment.added
        trainable = sum(parameter.numel() for parameter in self.trainable().values())
        total = sum(base.values()) - sum(added.values())
        return {
            "total": total,
            "added": sum(added.values()),
            "trainable": trainable,
            "percent": round(100 * trainable / (total + sum(added.values())), 4),
            "components": {
                name: self._component_summary(name, base[name] - added[name]) for name in base
            },
        }

    def _component_summary(self, component: str, parameters: int) -> dict[str, Any]:
        sizes = {name: parameter.numel() for name, parameter in self.trainable().items()}
        here = [attachment for attachment in self.attachments if attachment.component == component]
        strategies = [
            {
                "name": short_name(type(a.strategy), STRATEGIES),
                "trainable": sum(sizes[name] for name in a.trainable),
                "learning_rate": getattr(a.strategy, "learning_rate", None),
                "targets": list(a.targets),
            }
            for a in here
        ]
        return {
            "roots": list(self.components.roots.get(component, ())),
            "parameters": parameters,
            "trainable": sum(entry["trainable"] for entry in strategies),
            "strategies": strategies,
        }


def attach(plan: Plan, model: nn.Module, components: Components) -> AttachedPlan:
    """Attach every component's strategies; afterwards exactly the planned parameters take gradients.

    Trainables are fp32: bf16 weights at small rates lose updates. The model is left in eval mode; a
    failure leaves it as it was.

    Raises:
        UserError: targets that match nothing, or a strategy the component cannot take.
    """
    attached = AttachedPlan(plan, model, components, [])
    base_modules = frozenset(id(module) for module in model.modules())
    try:
        for name in PLANNED:
            for strategy in plan.of(name):
                component = Component(name, model, components, base_modules)
                attached.attachments.append(strategy.attach(component))
                _check_apart(attached.attachments)
    except UserError:
        attached.detach()
        raise
    model.requires_grad_(False).eval()
    for parameter in attached.trainable().values():
        parameter.data = parameter.data.to(torch.float32)
        parameter.requires_grad_(True)
    return attached


def _check_apart(attachments: list[Attachment]) -> None:
    """Raise a UserError if the last strategy trains what an earlier one does: its dW would count twice."""
    *earlier, last = attachments
    for other in earlier:
        if both := set(other.trainable) & set(last.trainable):
            first, second = (type(a.strategy).__name__ for a in (other, last))
            raise UserError(
                f"{first} and {second} on {last.component} both train {min(both)} ({len(both)} parameters in all); "
                "give each parameter to one of them"
            )


def check_has_trainables(attached: AttachedPlan) -> None:
    """Raise a UserError if every component is frozen."""
    if not attached.trainable():
        raise UserError(
            "nothing to train: every component of model.plan is Frozen; give one a strategy, e.g. "
            "model.plan.language=LoRA"
        )
