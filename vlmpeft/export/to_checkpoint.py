"""`export --to merged`: the routes from an adapter to a checkpoint, each measured, one written and gated."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.loading import attach_adapter
from vlmpeft.base.components import Components
from vlmpeft.base.loading import load_base
from vlmpeft.evaluation.equivalence import make_trial
from vlmpeft.evaluation.tower_cache import Sample
from vlmpeft.export.answer_gate import ALONE, ATTACHED, Routes
from vlmpeft.export.checkpoint import add_to_weights, find_carriers, write_checkpoint
from vlmpeft.export.reload import encode_again, load_checkpoint
from vlmpeft.export.target_weights import MergeTarget, starts_from_quantized
from vlmpeft.runtime.private_apis import keep_4bit_as_stored
from vlmpeft.strategies.deltas import dequantized
from vlmpeft.strategies.low_rank import Delta


@dataclass
class MergedExport:
    """One adapter on its way into a checkpoint.

    Args:
        adapter: as it was read.
        target: which weights dW is added to.
        samples: what the answers are compared by, encoded by the adapter's processor.
        tolerance: largest |delta logits|; None is by the width written.
        max_shard_size: of a safetensors file.
    """

    adapter: Adapter
    target: MergeTarget
    samples: list[Sample]
    tolerance: float | None = None
    max_shard_size: str = "5GB"

    def run(self, scratch: Path) -> dict[str, Any]:
        """Measure every route and write the chosen one; returns the report.

        Args:
            scratch: an empty folder.

        Raises:
            GateFailed: what was written answers otherwise than the attached adapter.
        """
        deltas = self._measure_trained(scratch)
        if not self.target.is_own_width and not starts_from_quantized(self.adapter.plan):
            deltas = self._attach_whole()
        if not starts_from_quantized(self.adapter.plan):
            self._merge_whole(scratch, deltas)
        tolerance = self.target.tolerance if self.tolerance is None else self.tolerance
        gate = self.routes.check(
            self.target.written, *self.target.reference, tolerance, only=self.tolerance is not None
        )
        return self._report(gate)

    def _measure_trained(self, scratch: Path) -> dict[str, Delta]:
        """The adapter on the base as it was trained, and if that is quantized what becomes of those weights."""
        model, _, components = load_base(self.target.spec, self.target.device)
        decoding = self.adapter.manifest.decoding
        self.routes = Routes(make_trial(model, self.adapter.processor, decoding, self.samples))
        deltas = self._take(model, components, ATTACHED, ALONE)
        if not self.target.quantized:
            return deltas
        self._merge_dequantized(scratch, model, deltas)
        add_to_weights(model, deltas)
        if self.target.onto == "quantized":
            self._write(scratch, model)
            model = None
        self._measure(self.target.requantized, scratch, model)
        return deltas

    def _take(
        self, model: Any, components: Components, attached: str, alone: str
    ) -> dict[str, Delta]:
        """Answers with the adapter attached and without; returns its dW."""
        plan = attach_adapter(self.adapter, model, components)
        self.adapter.forget_tensors()
        self.routes.ask(attached, model)
        deltas = plan.products()
        self.carriers = find_carriers(plan, self.adapter.manifest.shapes, deltas)
        plan.detach()
        self.routes.ask(alone, model)
        return deltas

    def _merge_dequantized(
        self, scratch: Path, quantized: Any, deltas: Mapping[str, Delta]
    ) -> None:
        model = self._load_whole()
        parameters = dict(model.named_parameters())
        for name, layer in quantized.named_modules():
            weight = getattr(layer, "weight", None)
            if isinstance(weight, torch.Tensor) and not weight.is_floating_point():
                parameters[f"{name}.weight"].data = dequantized(layer).to(
                    parameters[f"{name}.weight"]
                )
        add_to_weights(model, deltas)
        if self.target.onto == "dequantized":
            self._write(scratch, model)
            model = None
        self._measure(self.target.dequantized, scratch, model)

    def _attach_whole(self) -> dict[str, Delta]:
        """The adapter on whole weights of the checkpoint's own width."""
        model, _, components = load_base(self.target.whole_spec, self.target.device)
        return self._take(model, components, *self.target.whole)

    def _merge_whole(self, scratch: Path, deltas: Mapping[str, Delta]) -> None:
        model = self._load_whole()
        add_to_weights(model, deltas)
        if self.target.onto == "full":
            self._write(scratch, model)
            model = None
        self._measure(self.target.merged, scratch, model)

    def _load_whole(self) -> Any:
        """The base's checkpoint as it is stored."""
        return load_checkpoint(self.target.spec.path, self.target.spec.revision)

    def _write(self, scratch: Path, model: Any) -> None:
        limits = self.routes.trial.limits
        write_checkpoint(scratch, model, self.adapter.processor, limits, self.max_shard_size)

    def _measure(self, route: str, scratch: Path, model: Any = None) -> None:
        """Answers of a model in memory, or as reloaded from disk with the processor that was written beside it."""
        gc.collect()
        samples, device = self.samples, self.target.device
        if model is None:
            model = load_checkpoint(str(scratch), device=device)
            samples = encode_again(samples, scratch, self.adapter.manifest.max_pixels)
        if next(model.parameters()).device.type != device.type:
            model.to(device)
        keep_4bit_as_stored(model)
        self.routes.ask(route, model, samples)

    def _report(self, gate: dict[str, Any]) -> dict[str, Any]:
        lost = {
            name: "nothing of it changes a weight" for name, own in self.carriers.items() if not own
        }
        return {
            "onto": self.target.onto,
            "trained_on": self.target.widths,
            "written": self.target.written_width,
            "gate": gate,
            "routes": self.routes.rows(self.target.written),
            "tensors": {name: own for name, own in self.carriers.items() if own},
            "not_exported": lost,
            "notes": self.target.notes() + self._notes(),
        }

    def _notes(self) -> list[str]:
        if pixels := self.adapter.manifest.max_pixels:
            return [
                f"pictures above {pixels} pixels were scaled down before the processor saw them; scale yours down as well"
            ]
        return []
