"""Which adapters PEFT or vLLM can load once they are exported, and what else can be done with the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vlmpeft.merging.result import linear_weights
from vlmpeft.preflight.servability import MAX_RANK, Engine, judge
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.plan import AttachedPlan


@dataclass(frozen=True)
class Loadability:
    """What can be known of an export before weights are loaded.

    Args:
        adapter: its folder.
        engine: peft or vllm.
        attached: the adapter's plan on the base without weights.
        rank: of the LoRA that a fully trained projector becomes; None leaves it.
    """

    adapter: str
    engine: Engine
    attached: AttachedPlan
    rank: int | None = None

    def check(self) -> None:
        """Refuse what the engine cannot load.

        Raises:
            UserError: names the components, why, and another way.
        """
        if self.rank is not None:
            self._check_projector()
        others = self._without_projector() if self.rank else self.attached
        verdicts = judge(others, self.engine, folded=self._may_fold(others))
        refused = {name: v.reason for name, v in verdicts.items() if not v.is_loadable}
        if refused:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
            raise UserError(
                f"{self.engine} cannot load adapter {self.adapter}: {reasons}. {self._next_move(set(refused))}"
            )

    @property
    def needs_folding(self) -> bool:
        """Whether its parts have scales that one adapter cannot have side by side."""
        lora = [s for a in self.attached.attachments if a.peft for s in a.peft.lora.values()]
        kinds = {s["rslora"] for s in lora}
        scales = {s["alpha"] / (s["r"] ** 0.5 if s["rslora"] else s["r"]) for s in lora}
        return len(kinds) > 1 or (self.engine == "vllm" and len(scales) > 1)

    def _check_projector(self) -> None:
        trained = [a for a in self._on("projector") if a.trainable]
        if not trained:
            raise UserError(
                f"--projector svd:{self.rank} has no effect: adapter {self.adapter} leaves the projector alone; leave it out"
            )
        if all(a.peft and a.peft.lora and not _has_dora(a.peft.lora) for a in trained):
            raise UserError(
                f"--projector svd:{self.rank} has no effect: the projector has a LoRA already; leave it out"
            )
        if not self._can_factor():
            names = ", ".join(type(a.strategy).__name__ for a in trained)
            raise UserError(
                f"--projector svd:{self.rank}: {names} on projector changes no weight of a linear layer; leave it out"
            )
        others = [a for a in self._without_projector().attachments if a.trainable]
        if odd := [a for a in others if not (a.peft and a.peft.lora) or _has_dora(a.peft.lora)]:
            raise UserError(
                f"--projector svd:{self.rank}: beside a LoRA on the projector PEFT cannot carry {_named(odd)}. --to merged may"
            )
        if self.engine == "vllm" and self.rank and self.rank > MAX_RANK:
            raise UserError(f"--projector svd:{self.rank}: vLLM's largest rank is {MAX_RANK}")

    def _on(self, component: str) -> list[Any]:
        return [a for a in self.attached.attachments if a.component == component]

    def _can_factor(self) -> bool:
        """Whether the projector changes weights, and has linear layers for a LoRA."""
        here = self._on("projector")
        component_of = self.attached.components.component_of
        linears = [n for n in linear_weights(self.attached.model) if component_of(n) == "projector"]
        return bool(linears) and all(a.deltas is not None for a in here)

    def _without_projector(self) -> AttachedPlan:
        kept = [a for a in self.attached.attachments if a.component != "projector"]
        return replace(self.attached, attachments=kept)

    @staticmethod
    def _may_fold(attached: AttachedPlan) -> bool:
        """Scales can be folded into B where every part is a LoRA."""
        parts = [a.peft for a in attached.attachments if a.trainable]
        return all(part is not None and part.lora for part in parts)

    def _next_move(self, refused: set[str]) -> str:
        if refused == {"projector"} and self.rank is None and self._can_factor():
            return "--projector svd:64 turns the projector's change into LoRA, or --to merged writes a whole checkpoint"
        without = [a for a in self.attached.attachments if a.deltas is None]
        if not without:
            return "--to merged writes a whole checkpoint"
        return f"Nor can it be merged ({_named(without)} is no change of weights): use it here, by test, predict or chat --adapter"


def _has_dora(lora: dict[str, dict[str, Any]]) -> bool:
    return any(settings["dora"] for settings in lora.values())


def _named(attachments: list[Any]) -> str:
    return ", ".join(f"{type(a.strategy).__name__} on {a.component}" for a in attachments)
