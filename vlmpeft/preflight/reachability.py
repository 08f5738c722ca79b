"""Which trained parameters can get a gradient at all, found on a small twin of the model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from vlmpeft.base.components import find_components
from vlmpeft.preflight.shrunken_model import build_twin, picture_batches
from vlmpeft.strategies.plan import AttachedPlan, Plan, attach


@dataclass(frozen=True)
class Reachability:
    """What one backward pass said.

    Args:
        unreachable: full names of trained parameters that no output depends on; None if not known.
        reason: why it is not known.
    """

    unreachable: frozenset[str] | None
    reason: str = ""

    def count(self, attached: AttachedPlan, component: str) -> int | None:
        """Trained numbers of a component that can get a gradient; None if not known."""
        if self.unreachable is None:
            return None
        sizes = {name: parameter.numel() for name, parameter in attached.trainable().items()}
        here = [a for a in attached.attachments if a.component == component]
        names = {name for attachment in here for name in attachment.trainable}
        return sum(sizes[name] for name in names - self.unreachable)


def find_unreachable(attached: AttachedPlan) -> Reachability:
    """Attach the plan to a CPU twin with the same layers and taps, and look where one backward pass arrives.

    LLaVA taps `vision_feature_layer=-2`, so the tower's last layer never trains (trl#1936). A meta forward cannot tell:
    where image tokens go depends on values.
    """
    if not attached.trainable():
        return Reachability(frozenset())
    try:
        with torch.random.fork_rng(devices=[]):
            twin = build_twin(attached.model.config)
            small = attach(_low_rank(attached.plan), twin, find_components(twin))
            trained = small.trainable()
            if trained.keys() != attached.trainable().keys():
                return Reachability(None, "the twin has other trained parameters")
            batch = next(picture_batches(twin), None)
            if batch is None:
                return Reachability(None, "no way to show the twin a picture is known")
            total = twin(**batch, use_cache=False).logits.sum()
            if total.requires_grad:  # not if all that is trained lies behind the tap
                total.backward()
    except Exception as error:  # noqa: BLE001  any architecture may refuse the twin's sizes in its own way
        return Reachability(None, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    return Reachability(frozenset(name for name, p in trained.items() if p.grad is None))


def _low_rank(plan: Plan) -> Plan:
    """The plan with rank 1 everywhere: names do not depend on it."""
    return Plan(
        *([_smaller(strategy) for strategy in plan.of(field.name)] for field in fields(plan))
    )


def _smaller(strategy: Any) -> Any:
    return replace(strategy, r=1) if isinstance(getattr(strategy, "r", None), int) else strategy
