"""Which weights an adapter is merged into: what can be known before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from vlmpeft.base.components import PLANNED
from vlmpeft.base.spec import NUM_BITS, QUANTIZED, BaseSpec, Bits, resolve_bits
from vlmpeft.evaluation.equivalence import TOLERANCE
from vlmpeft.export.answer_gate import ALONE, ATTACHED
from vlmpeft.export.checkpoint import stored_width
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.plan import Plan

Onto = Literal["full", "dequantized", "quantized"]


@dataclass
class MergeTarget:
    """The widths an adapter was trained on, and those it is merged into.

    Args:
        adapter: its folder.
        spec: the base in the widths the adapter was trained on.
        device: where models run.
        onto: which weights dW is added to.
    """

    adapter: str
    spec: BaseSpec
    device: torch.device
    onto: Onto = "full"

    def __post_init__(self) -> None:
        self.widths = resolve_bits(self.spec.bits, self.device)
        self.quantized = sorted({w for w in self.widths.values() if w in QUANTIZED})
        self.own = stored_width(self.spec)

    def check(self, plan: Plan) -> None:
        """Refuse what cannot be merged this way.

        Raises:
            UserError: names the setting, and another.
        """
        if self.onto != "full" and not self.quantized:
            raise UserError(
                f"--onto {self.onto} has no effect: adapter {self.adapter} was trained on {self._trained} weights; leave it out"
            )
        if self.onto == "full" and starts_from_quantized(plan):
            raise UserError(
                "--onto full: LoRA init=loftq makes up for what quantization lost, so on whole weights it would be added "
                "twice; give --onto dequantized, which answers as the adapter does on its quantized base"
            )
        if self.onto == "quantized" and len({*self.widths.values()} & {*QUANTIZED}) > 1:
            mixed = ", ".join(f"{name} {self.widths[name]}" for name in PLANNED)
            raise UserError(
                f"--onto quantized: one transformers checkpoint has one quantized width, and this base has several ({mixed}); "
                "give --onto full or --onto dequantized"
            )

    @property
    def _trained(self) -> str:
        return " + ".join(dict.fromkeys(self.widths[name] for name in reversed(PLANNED)))

    @property
    def whole_spec(self) -> BaseSpec:
        """The base in the checkpoint's own width."""
        bits = Bits(self.own, self.own, self.own)  # type: ignore[arg-type]
        return BaseSpec(self.spec.path, bits, revision=self.spec.revision)

    @property
    def is_own_width(self) -> bool:
        """Whether the adapter was trained on the checkpoint's own width."""
        return set(self.widths.values()) == {self.own}

    # -- the routes' names ---------------------------------------------------------------------

    @property
    def written(self) -> str:
        """The route that is written."""
        names = {"full": self.merged, "dequantized": self.dequantized}
        return names.get(self.onto, self.requantized)

    @property
    def merged(self) -> str:
        return f"merged, {self.own}"

    @property
    def dequantized(self) -> str:
        return f"merged, dequantized, {self.own}"

    @property
    def requantized(self) -> str:
        return f"merged, quantized again, {'+'.join(self.quantized)}"

    @property
    def whole(self) -> tuple[str, str]:
        """The adapter on whole weights, and those without it."""
        return f"attached, {self.own}", f"no adapter, {self.own}"

    @property
    def reference(self) -> tuple[str, str]:
        """What the written checkpoint stands for, and the same without adapter."""
        return (ATTACHED, ALONE) if self.onto != "full" or self.is_own_width else self.whole

    # -- what is said of it --------------------------------------------------------------------

    @property
    def tolerance(self) -> float | None:
        """Largest |delta logits| unless told otherwise; quantizing again has none."""
        return None if self.onto == "quantized" else TOLERANCE[self.own]

    @property
    def written_width(self) -> str:
        """Of the weights that are written."""
        return self.requantized if self.onto == "quantized" else self.own

    def notes(self) -> list[str]:
        """What merging into other weights than the trained ones means."""
        if self.quantized and self.onto == "full":
            return [
                f"trained on {self._trained} weights, merged into the checkpoint's own {self.own} weights "
                f"({NUM_BITS[self.own]} bit): another base than the one it was trained on; the routes say how much that "
                "changes. --onto dequantized keeps the trained answers in whole weights"
            ]
        if self.quantized and self.onto == "quantized":
            return [
                "quantizing again rounds the merged weights once more: the routes say what that costs against the attached adapter"
            ]
        return []


def starts_from_quantized(plan: Plan) -> bool:
    """Whether a LoRA in it makes up for what quantization lost."""
    return any(getattr(s, "init", "") == "loftq" for name in PLANNED for s in plan.of(name))
