"""`export --to merged`: the routes from an adapter to a checkpoint, each measured, one written and gated."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vlmpeft.adapters import load_adapter, saved_processor
from vlmpeft.base import NUM_BITS, QUANTIZED, BaseSpec, Bits, load_base, resolve_bits
from vlmpeft.components import PLANNED, Components
from vlmpeft.data.encode import Encoder
from vlmpeft.equivalence import (
    TOLERANCE,
    Answers,
    Gate,
    Trial,
    compare,
    encode_items,
    make_trial,
    same_encoding,
)
from vlmpeft.errors import GateFailed, UserError
from vlmpeft.export import (
    add_to_weights,
    find_carriers,
    load_checkpoint,
    stored_width,
    write_checkpoint,
)
from vlmpeft.features import Sample
from vlmpeft.plan import Plan
from vlmpeft.strategies.deltas import dequantized
from vlmpeft.strategies.low_rank import Delta

Onto = Literal["full", "dequantized", "quantized"]
ONTO: tuple[Onto, ...] = ("full", "dequantized", "quantized")
ATTACHED, ALONE = "attached, as trained", "no adapter, as trained"


@dataclass
class MergedExport:
    """One adapter on its way into a checkpoint.

    Args:
        adapter: its folder.
        manifest: of the adapter.
        spec: the base in the widths the adapter was trained on.
        samples: what the answers are compared by.
        processor: the adapter's, that encoded them.
        device: where models run.
        onto: which weights dW is added to.
        tolerance: largest |delta logits|; None is by the width written.
        max_shard_size: of a safetensors file.
    """

    adapter: str
    manifest: dict[str, Any]
    spec: BaseSpec
    samples: list[Sample]
    processor: Any
    device: torch.device
    onto: Onto = "full"
    tolerance: float | None = None
    max_shard_size: str = "5GB"

    def __post_init__(self) -> None:
        self.widths = resolve_bits(self.spec.bits, self.device)
        self.quantized = sorted({w for w in self.widths.values() if w in QUANTIZED})
        self.own = stored_width(self.spec)
        self.routes: dict[str, Answers] = {}
        self.trial: Trial | None = None

    # -- what can be known before anything is loaded -------------------------------------------

    def check(self, plan: Plan) -> None:
        """Refuse what cannot be merged this way.

        Raises:
            UserError: names the setting, and another.
        """
        if self.onto != "full" and not self.quantized:
            raise UserError(
                f"--onto {self.onto} has no effect: adapter {self.adapter} was trained on {self._trained} weights; leave it out"
            )
        if self.onto == "full" and self.starts_from_quantized(plan):
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

    @staticmethod
    def starts_from_quantized(plan: Plan) -> bool:
        return any(getattr(s, "init", "") == "loftq" for name in PLANNED for s in plan.of(name))

    @property
    def _trained(self) -> str:
        return " + ".join(dict.fromkeys(self.widths[name] for name in reversed(PLANNED)))

    # -- the routes ----------------------------------------------------------------------------

    def run(self, scratch: Path, plan: Plan) -> dict[str, Any]:
        """Measure every route and write the chosen one; returns the report.

        Raises:
            GateFailed: what was written answers otherwise than the attached adapter.
        """
        deltas = self._measure_trained(scratch)
        if not self._is_own_width and not self.starts_from_quantized(plan):
            deltas = self._attach_whole()
        if not self.starts_from_quantized(plan):
            self._merge_whole(scratch, deltas)
        written = self._written
        reference, alone = self._reference()
        gate = Gate(
            compare(self.routes[reference], self.routes[written]),
            compare(self.routes[reference], self.routes[alone]),
            self._tolerance(),
            alone=self.tolerance is not None,
        )
        gate.check(f"{written} is not what the adapter is on its base ({reference})")
        return self._report(written, reference, gate)

    @property
    def _written(self) -> str:
        names = {"full": self._merged, "dequantized": self._dequantized}
        return names.get(self.onto, self._requantized)

    @property
    def _merged(self) -> str:
        return f"merged, {self.own}"

    @property
    def _dequantized(self) -> str:
        return f"merged, dequantized, {self.own}"

    @property
    def _requantized(self) -> str:
        return f"merged, quantized again, {'+'.join(self.quantized)}"

    @property
    def _is_own_width(self) -> bool:
        return set(self.widths.values()) == {self.own}

    def _reference(self) -> tuple[str, str]:
        """(what the written checkpoint stands for, the same without adapter)."""
        if self.onto != "full" or self._is_own_width:
            return ATTACHED, ALONE
        return f"attached, {self.own}", f"no adapter, {self.own}"

    def _tolerance(self) -> float | None:
        if self.tolerance is None and self.onto != "quantized":
            return TOLERANCE[self.own]
        return self.tolerance

    def _measure_trained(self, scratch: Path) -> dict[str, Delta]:
        """The adapter on the base as it was trained, and if that is quantized what becomes of those weights."""
        model, _, components = load_base(self.spec, self.device)
        self.trial = make_trial(model, self.processor, self.manifest.get("decoding"), self.samples)
        deltas = self._take(model, components, ATTACHED, ALONE)
        if not self.quantized:
            return deltas
        self._merge_dequantized(scratch, model, deltas)
        add_to_weights(model, deltas)
        if self.onto == "quantized":
            self._write(scratch, model)
            model = None
        self._measure(self._requantized, scratch, model)
        return deltas

    def _take(
        self, model: Any, components: Components, attached: str, alone: str
    ) -> dict[str, Delta]:
        """Answers with the adapter attached and without; returns its dW."""
        assert self.trial is not None
        plan = load_adapter(self.adapter, model, components)
        self.routes[attached] = self.trial.answers(model)
        deltas = plan.products()
        self.carriers = find_carriers(plan, self.manifest["tensors"], deltas)
        plan.detach()
        self.routes[alone] = self.trial.answers(model)
        return deltas

    def _merge_dequantized(
        self, scratch: Path, quantized: Any, deltas: Mapping[str, Delta]
    ) -> None:
        model = load_checkpoint(self.spec.path, self.spec.revision)
        parameters = dict(model.named_parameters())
        for name, layer in quantized.named_modules():
            weight = getattr(layer, "weight", None)
            if isinstance(weight, torch.Tensor) and not weight.is_floating_point():
                parameters[f"{name}.weight"].data = dequantized(layer).to(
                    parameters[f"{name}.weight"]
                )
        add_to_weights(model, deltas)
        if self.onto == "dequantized":
            self._write(scratch, model)
            model = None
        self._measure(self._dequantized, scratch, model)

    def _attach_whole(self) -> dict[str, Delta]:
        """The adapter on whole weights of the checkpoint's own width."""
        bits = Bits(self.own, self.own, self.own)  # type: ignore[arg-type]
        spec = BaseSpec(self.spec.path, bits, revision=self.spec.revision)
        model, _, components = load_base(spec, self.device)
        return self._take(model, components, f"attached, {self.own}", f"no adapter, {self.own}")

    def _merge_whole(self, scratch: Path, deltas: Mapping[str, Delta]) -> None:
        model = load_checkpoint(self.spec.path, self.spec.revision)
        add_to_weights(model, deltas)
        if self.onto == "full":
            self._write(scratch, model)
            model = None
        self._measure(self._merged, scratch, model)

    def _write(self, scratch: Path, model: Any) -> None:
        assert self.trial is not None
        write_checkpoint(scratch, model, self.processor, self.trial.limits, self.max_shard_size)

    def _measure(self, route: str, scratch: Path, model: Any = None) -> None:
        """Answers of a model in memory, or as reloaded from disk with the processor that was written beside it."""
        assert self.trial is not None
        gc.collect()
        samples = self.samples
        if model is None:
            model = load_checkpoint(str(scratch), device=self.device)
            encoder = Encoder(saved_processor(scratch), None, self.manifest.get("max_pixels"))
            samples = encode_items([item for item, _ in self.samples], encoder)
            if not same_encoding(samples, self.samples):
                raise GateFailed(
                    "the processor that was written encodes samples otherwise; nothing was written"
                )
        if next(model.parameters()).device.type != self.device.type:
            model.to(self.device)
        self.routes[route] = self.trial.answers(model, samples)

    # -- what is said of it --------------------------------------------------------------------

    def _report(self, written: str, reference: str, gate: Gate) -> dict[str, Any]:
        trained = self.routes[ATTACHED]
        rows = [
            {"route": route, "written": route == written}
            | asdict(compare(trained, answers))
            | {"loss": answers.loss, "exact_match": answers.exact_match}
            for route, answers in self.routes.items()
        ]
        lost = {
            name: "nothing of it changes a weight" for name, own in self.carriers.items() if not own
        }
        return {
            "onto": self.onto,
            "trained_on": self.widths,
            "written": self._requantized if self.onto == "quantized" else self.own,
            "gate": {"reference": reference, "exported": written} | gate.to_dict(),
            "routes": rows,
            "tensors": {name: own for name, own in self.carriers.items() if own},
            "not_exported": lost,
            "notes": self._notes(),
        }

    def _notes(self) -> list[str]:
        notes = []
        if self.quantized and self.onto == "full":
            notes.append(
                f"trained on {self._trained} weights, merged into the checkpoint's own {self.own} weights "
                f"({NUM_BITS[self.own]} bit): another base than the one it was trained on; the routes say how much that "
                "changes. --onto dequantized keeps the trained answers in whole weights"
            )
        if self.quantized and self.onto == "quantized":
            notes.append(
                "quantizing again rounds the merged weights once more: the routes say what that costs against the attached adapter"
            )
        if pixels := self.manifest.get("max_pixels"):
            notes.append(
                f"pictures above {pixels} pixels were scaled down before the processor saw them; scale yours down as well"
            )
        return notes
