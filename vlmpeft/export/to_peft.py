"""`export --to peft` and `--to vllm`: an adapter folder that plain PEFT loads with the same answers."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.loading import attach_adapter
from vlmpeft.adapters.peft_form import PREFIX, peft_config
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.components import Components
from vlmpeft.base.loading import compute_dtype, load_base, meta_model
from vlmpeft.base.spec import DTYPES, BaseSpec, base_dir, resolve_bits
from vlmpeft.evaluation.equivalence import TOLERANCE, compare, make_trial
from vlmpeft.evaluation.tower_cache import Sample
from vlmpeft.export.answer_gate import ALONE, ATTACHED, Routes
from vlmpeft.export.loadability import Loadability
from vlmpeft.export.projector_as_lora import factor
from vlmpeft.export.reload import encode_again, load_in_peft
from vlmpeft.export.vllm_command import lora_targets, serving
from vlmpeft.merging.operands import read_operand
from vlmpeft.merging.result import Result, attach_result, linear_weights
from vlmpeft.strategies.low_rank import Delta, LowRank

CONFIG = "adapter_config.json"
IN_PEFT = "loaded by plain PEFT"


@dataclass
class AdapterExport:
    """One adapter on its way into a folder that an engine loads.

    Args:
        adapter: as it was read.
        spec: the base in the widths the adapter was trained on.
        form: what it is exported for and how, checked.
        out: what the folder will be called.
        samples: what the answers are compared by, encoded by the adapter's processor.
        device: where models run.
        tolerance: largest |delta logits|; None is by the widths of the base.
    """

    adapter: Adapter
    spec: BaseSpec
    form: Loadability
    out: Path
    samples: list[Sample]
    device: torch.device
    tolerance: float | None = None

    def run(self, scratch: Path) -> dict[str, Any]:
        """Write the folder; returns the report.

        Args:
            scratch: an empty folder.

        Raises:
            GateFailed: plain PEFT answers otherwise with it than the adapter as we attach it.
        """
        report: dict[str, Any] = {"notes": []}
        reference = self._write(scratch, report)
        self.adapter.forget_tensors()
        report |= self._check_in_peft(scratch, reference)
        written = Adapter.read(scratch).tensors
        report["tensors"], report["not_exported"] = self._inventory(written, report)
        if self.form.engine == "vllm":
            parts = {
                self.form.attached.components.component_of(target)
                for target in lora_targets(written)
            }
            report["vllm"] = serving(
                scratch, self.out, written, parts, self.spec.path, self.adapter.manifest
            )
        return report

    # -- writing -------------------------------------------------------------------------------

    def _write(self, scratch: Path, report: dict[str, Any]) -> str:
        """The folder, beside the answers it stands for; returns the name of those."""
        model, _, components = load_base(self.spec, self.device)
        decoding = self.adapter.manifest.decoding
        self.routes = Routes(make_trial(model, self.adapter.processor, decoding, self.samples))
        attached = attach_adapter(self.adapter, model, components)
        self.routes.ask(ATTACHED, model)
        attached.detach()
        self.routes.ask(ALONE, model)
        if self.form.rank is not None:
            return self._factor_projector(scratch, report, model, components)
        if self.form.needs_folding:
            self._fold(scratch, report)
        else:
            self._copy(scratch)
        return ATTACHED

    def _fold(self, scratch: Path, report: dict[str, Any]) -> None:
        operand = read_operand(self.adapter, meta_model(self.spec), self.form.attached.components)
        self._rewrite(scratch, Result(products=_products(operand.deltas)))
        report["notes"].append(
            "its parts have unequal scales, which one adapter cannot have: each is multiplied into B, and alpha / r is the same"
        )

    def _copy(self, scratch: Path) -> None:
        """The adapter's own folder, with PEFT's config written anew for the base as it is called here."""
        for path in self.adapter.path.iterdir():
            if path.is_file() and path.suffix not in (".bin", ".pt", ".pth"):
                shutil.copyfile(path, scratch / path.name)
        self._write_config(scratch, peft_config(self.form.attached, self._base()))

    def _base(self) -> str:
        """What other programs find the base by."""
        return base_dir(self.spec.path)

    def _rewrite(self, scratch: Path, result: Result) -> None:
        attached = attach_result(result, meta_model(self.spec), self.form.attached.components)
        manifest = self.adapter.manifest
        save_adapter(
            scratch,
            attached,
            processor=self.adapter.processor,
            base=manifest.base.to_dict(),
            chat_template=self.adapter.chat_template,
            decoding=manifest.decoding and manifest.decoding.to_dict(),
            max_pixels=manifest.max_pixels,
            extra={"exported_from": manifest.raw["plan"]},
        )
        self._write_config(scratch, peft_config(attached, self._base()))

    @staticmethod
    def _write_config(folder: Path, config: dict[str, Any]) -> None:
        text = json.dumps(
            config,
            indent=2,
            sort_keys=True,
            default=lambda v: sorted(v) if isinstance(v, set) else str(v),
        )
        (folder / CONFIG).write_text(text + "\n")

    def _factor_projector(
        self, scratch: Path, report: dict[str, Any], model: Any, components: Components
    ) -> str:
        """The projector as LoRA beside the other parts' own, and what that does to the answers."""
        assert self.form.rank is not None
        deltas = read_operand(self.adapter, model, components).deltas
        here = {n: d for n, d in deltas.items() if components.component_of(n) == "projector"}
        found = factor(here, linear_weights(model), self.form.rank)
        others = {n: d for n, d in deltas.items() if n not in here}
        products = _products(others) | found.products
        self._rewrite(scratch, Result(products={n: _on_cpu(p) for n, p in products.items()}))
        attach_adapter(Adapter.read(scratch), model, components)
        route = f"attached, projector as LoRA of rank {self.form.rank}"
        before, after = self.routes.answers[ATTACHED], self.routes.ask(route, model)
        report["projector"] = {
            "rank": self.form.rank,
            "energy": found.total_energy,
            "energy_by_weight": found.energy,
            "lost": found.lost,
            "change": asdict(compare(before, after)),
            "loss": [before.loss, after.loss],
            "exact_match": [before.exact_match, after.exact_match],
        }
        return route

    # -- the gate ------------------------------------------------------------------------------

    def _check_in_peft(self, scratch: Path, reference: str) -> dict[str, Any]:
        """What was written as plain PEFT loads it, on a fresh base: detaching may round what it puts back."""
        gc.collect()
        model = load_in_peft(scratch, self.spec, self.device)
        samples = encode_again(self.samples, scratch, self.adapter.manifest.max_pixels)
        self.routes.ask(IN_PEFT, model, samples)
        tolerance = self._usual_tolerance() if self.tolerance is None else self.tolerance
        gate = self.routes.check(
            IN_PEFT, reference, ALONE, tolerance, only=self.tolerance is not None
        )
        return {"gate": gate, "routes": self.routes.rows(IN_PEFT)}

    def _usual_tolerance(self) -> float:
        """By the coarsest numbers that the base computes in; int8 layers do in fp16."""
        computed = {dtype: name for name, dtype in DTYPES.items()}[
            compute_dtype(self.spec, self.device)
        ]
        coarse = {"int8": "fp16", "nf4": computed, "fp4": computed}
        widths = resolve_bits(self.spec.bits, self.device).values()
        return max(TOLERANCE[coarse.get(width, width)] for width in widths)

    # -- what is said of it --------------------------------------------------------------------

    def _inventory(
        self, written: dict[str, Tensor], report: dict[str, Any]
    ) -> tuple[dict[str, list[str]], dict[str, str]]:
        """(trained tensor -> the written ones that carry it, trained tensor -> why it is in none)."""
        carried, lost = {}, {}
        gone = report.get("projector", {}).get("lost", {})
        for name in self.adapter.manifest.shapes:
            bare = name.removeprefix(PREFIX)
            factors = [f"{PREFIX}{bare.rpartition('.')[0]}.lora_{x}.weight" for x in "AB"]
            if name in written:
                carried[name] = [name]
            elif bare in gone:
                lost[name] = f"no LoRA carries it; its dW had norm {gone[bare]:.3g}"
            elif bare.endswith(".weight") and set(factors) <= written.keys():
                carried[name] = factors
            else:
                lost[name] = "its dW is zero: it is as in the base"
        return carried, lost


def _products(deltas: dict[str, Delta]) -> dict[str, LowRank]:
    found = {name: delta for name, delta in deltas.items() if isinstance(delta, LowRank)}
    assert found.keys() == deltas.keys(), deltas.keys() - found.keys()
    return found


def _on_cpu(product: LowRank) -> LowRank:
    return LowRank(product.b.cpu(), product.a.cpu())
