"""How adapters are merged: a rule with its knobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vlmpeft.base.components import PLANNED
from vlmpeft.merging.rule_table import Rule, RuleName, Scope, find_rule
from vlmpeft.merging.sparse import Majority, check_density
from vlmpeft.runtime.errors import UserError, did_you_mean

KNOBS = ("density", "lam", "majority", "gamma", "epsilon")
_NAMED_RANKS = ("auto", "full", "largest")


@dataclass(frozen=True)
class Recipe:
    """A merge rule with its knobs; what is null is the rule's own default.

    Args:
        method: the rule.
        weights: one an adapter.
        component_weights: the same for single components, e.g. {vision: [1, 0, 1]}; the others take `weights`.
        density: share of the values that is kept, or probability to be kept.
        lam: scale of the result.
        majority: ties, dare_ties and della elect signs by the sum of values (mass) or by their number (frequency).
        gamma: of breadcrumbs: share of the largest values that is masked.
        epsilon: of della: spread of the drop probabilities.
        scope: over what thresholds and angles are taken: the whole model, each component, or each tensor. With model, a
            fully trained projector shares its threshold with the rest.
        rank: of the LoRA that is written: a number; full is exact, dense where it must be; auto is exact where the result is
            a product, the largest rank that went in where that keeps 95 % of the squared norm, else dense; largest is that rank always.
        seed: of the rules that drop at random.
    """

    method: RuleName = "ties"
    weights: tuple[float, ...] | None = None
    component_weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    density: float | None = None
    lam: float | None = None
    majority: Majority | None = None
    gamma: float | None = None
    epsilon: float | None = None
    scope: Scope | None = None
    rank: int | Literal["full", "auto", "largest"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rule = find_rule(self.method)
        for knob, value in self._given().items():
            if knob not in rule.knobs:
                raise UserError(
                    f"{knob}={value} has no effect with method {self.method}; leave it out. It takes "
                    f"{', '.join(rule.knobs) or 'nothing'}"
                )
        if self.density is not None:
            check_density(self.density)
        for component in self.component_weights:
            if component not in PLANNED:
                raise UserError(
                    f"component_weights: there is no component {component!r}.{did_you_mean(component, PLANNED)}"
                )
        self._check_scope(rule)
        if isinstance(self.rank, int) and self.rank < 1:
            raise UserError(f"rank={self.rank}: at least 1, or one of {', '.join(_NAMED_RANKS)}")

    def _check_scope(self, rule: Rule) -> None:
        if self.scope not in (None, *get_args(Scope)):
            raise UserError(f"scope={self.scope}: one of {', '.join(get_args(Scope))}")
        if self.scope and rule.whole_tensors and self.scope != "tensor":
            raise UserError(
                f"scope={self.scope}: {self.method} ranks values within a tensor; take scope=tensor or leave it out"
            )
        has_statistics = rule.needs_gram or rule.counts or rule.whole_tensors
        if self.scope and not has_statistics:
            raise UserError(
                f"scope={self.scope} has no effect with method {self.method}; leave it out"
            )

    @property
    def rule(self) -> Rule:
        return find_rule(self.method)

    @property
    def final_rank(self) -> int | str:
        return self.rank or self.rule.rank or "auto"

    def knobs(self, component: str) -> dict[str, Any]:
        """What the rule's function is called with for a component, weights included."""
        given = {
            name: value for name, value in self._given().items() if name != "component_weights"
        }
        if component in self.component_weights:
            given["weights"] = self.component_weights[component]
        return self.rule.knobs | given

    def _given(self) -> dict[str, Any]:
        """The rule's knobs that were said."""
        given = {name: getattr(self, name) for name in ("weights", *KNOBS)}
        found = {name: value for name, value in given.items() if value is not None}
        if self.component_weights:
            found.setdefault("weights", None)
        return found
