"""`export --to peft` and `--to vllm`: an adapter folder that those load, or which parts they cannot have."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmpeft.adapters import (
    PREFIX,
    chat_template,
    load_adapter,
    peft_config,
    read_tensors,
    save_adapter,
)
from vlmpeft.base import BaseSpec, base_dir, load_base, meta_model
from vlmpeft.equivalence import compare, make_trial
from vlmpeft.errors import UserError
from vlmpeft.factoring import factor
from vlmpeft.features import Sample
from vlmpeft.merging.operands import read_operand
from vlmpeft.merging.result import Result, attach_result, linear_weights
from vlmpeft.plan import AttachedPlan
from vlmpeft.servability import MAX_RANK, Engine, judge
from vlmpeft.strategies.low_rank import Delta, LowRank
from vlmpeft.vllm_serving import lora_targets, serving

CONFIG = "adapter_config.json"


@dataclass
class AdapterExport:
    """One adapter on its way into a folder that an engine loads.

    Args:
        adapter: its folder.
        manifest: of the adapter.
        spec: the base in the widths the adapter was trained on.
        engine: peft or vllm.
        attached: its plan on the base without weights.
        processor: the adapter's.
        rank: of the LoRA that a fully trained projector becomes; None leaves it.
    """

    adapter: str
    manifest: dict[str, Any]
    spec: BaseSpec
    engine: Engine
    attached: AttachedPlan
    processor: Any
    rank: int | None = None

    # -- what can be known before anything is loaded -------------------------------------------

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

    def _check_projector(self) -> None:
        trained = [a for a in self._on("projector") if a.trainable]
        if not trained:
            raise UserError(
                f"--projector svd:{self.rank} has no effect: adapter {self.adapter} leaves the projector alone; leave it out"
            )
        if all(a.peft and a.peft.lora and not self._has_dora(a.peft.lora) for a in trained):
            raise UserError(
                f"--projector svd:{self.rank} has no effect: the projector has a LoRA already; leave it out"
            )
        if not self._can_factor():
            names = ", ".join(type(a.strategy).__name__ for a in trained)
            raise UserError(
                f"--projector svd:{self.rank}: {names} on projector changes no weight of a linear layer; leave it out"
            )
        others = [a for a in self._without_projector().attachments if a.trainable]
        if odd := [
            a for a in others if not (a.peft and a.peft.lora) or self._has_dora(a.peft.lora)
        ]:
            names = ", ".join(f"{type(a.strategy).__name__} on {a.component}" for a in odd)
            raise UserError(
                f"--projector svd:{self.rank}: beside a LoRA on the projector PEFT cannot carry {names}. --to merged may"
            )
        if self.engine == "vllm" and self.rank and self.rank > MAX_RANK:
            raise UserError(f"--projector svd:{self.rank}: vLLM's largest rank is {MAX_RANK}")

    @staticmethod
    def _has_dora(lora: dict[str, dict[str, Any]]) -> bool:
        return any(settings["dora"] for settings in lora.values())

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
        if all(a.deltas is not None for a in self.attached.attachments):
            return "--to merged writes a whole checkpoint"
        without = [a for a in self.attached.attachments if a.deltas is None]
        names = ", ".join(f"{type(a.strategy).__name__} on {a.component}" for a in without)
        return f"Nor can it be merged ({names} is no change of weights): use it here, by test, predict or chat --adapter"

    # -- writing -------------------------------------------------------------------------------

    def run(
        self, scratch: Path, out: Path, samples: list[Sample], device: torch.device
    ) -> dict[str, Any]:
        """Write the folder; returns the report.

        Args:
            scratch: an empty folder.
            out: what it will be called.
            samples: of what a factored projector's answers are compared by.
            device: where models run.
        """
        report: dict[str, Any] = {"notes": []}
        if self.rank is not None:
            report |= self._factor_projector(scratch, samples, device)
        elif self._needs_folding():
            operand = read_operand(self.adapter, self.attached_model(), self.attached.components)
            self._rewrite(scratch, Result(products=_products(operand.deltas)))
            report["notes"].append(
                "its parts have unequal scales, which one adapter cannot have: each is multiplied into B, and alpha / r is the same"
            )
        else:
            self._copy(scratch)
        written = read_tensors(scratch)
        report["tensors"], report["not_exported"] = self._inventory(written, report)
        if self.engine == "vllm":
            parts = {
                self.attached.components.component_of(target) for target in lora_targets(written)
            }
            report["vllm"] = serving(scratch, out, written, parts, self.spec.path, self.manifest)
        return report

    def attached_model(self) -> Any:
        """A base without weights and with nothing attached."""
        return meta_model(self.spec)

    def _needs_folding(self) -> bool:
        lora = [s for a in self.attached.attachments if a.peft for s in a.peft.lora.values()]
        kinds = {s["rslora"] for s in lora}
        scales = {s["alpha"] / (s["r"] ** 0.5 if s["rslora"] else s["r"]) for s in lora}
        return len(kinds) > 1 or (self.engine == "vllm" and len(scales) > 1)

    def _copy(self, scratch: Path) -> None:
        """The adapter's own folder, with PEFT's config written anew for the base as it is called here."""
        for path in Path(self.adapter).iterdir():
            if path.is_file() and path.suffix not in (".bin", ".pt", ".pth"):
                shutil.copyfile(path, scratch / path.name)
        self._write_config(scratch, peft_config(self.attached, self._base()))

    def _base(self) -> str:
        """What other programs find the base by."""
        return base_dir(self.spec.path)

    def _rewrite(self, scratch: Path, result: Result) -> None:
        attached = attach_result(result, self.attached_model(), self.attached.components)
        save_adapter(
            scratch,
            attached,
            processor=self.processor,
            base=self.manifest["base"],
            chat_template=chat_template(self.adapter),
            decoding=self.manifest.get("decoding"),
            max_pixels=self.manifest.get("max_pixels"),
            extra={"exported_from": self.manifest["plan"]},
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
        self, scratch: Path, samples: list[Sample], device: torch.device
    ) -> dict[str, Any]:
        """The projector as LoRA beside the other parts' own, and what that does to the answers."""
        assert self.rank is not None
        model, _, components = load_base(self.spec, device)
        trial = make_trial(model, self.processor, self.manifest.get("decoding"), samples)
        attached = load_adapter(self.adapter, model, components)
        before = trial.answers(model)
        attached.detach()
        deltas = read_operand(self.adapter, model, components).deltas
        here = {n: d for n, d in deltas.items() if components.component_of(n) == "projector"}
        found = factor(here, linear_weights(model), self.rank)
        others = {n: d for n, d in deltas.items() if n not in here}
        products = _products(others) | found.products
        self._rewrite(scratch, Result(products={n: _on_cpu(p) for n, p in products.items()}))
        load_adapter(scratch, model, components)
        after = trial.answers(model)
        return {
            "projector": {
                "rank": self.rank,
                "energy": found.total_energy,
                "energy_by_weight": found.energy,
                "lost": found.lost,
                "change": asdict(compare(before, after)),
                "loss": [before.loss, after.loss],
                "exact_match": [before.exact_match, after.exact_match],
            }
        }

    # -- what is said of it --------------------------------------------------------------------

    def _inventory(
        self, written: dict[str, Tensor], report: dict[str, Any]
    ) -> tuple[dict[str, list[str]], dict[str, str]]:
        """(trained tensor -> the written ones that carry it, trained tensor -> why it is in none)."""
        carried, lost = {}, {}
        gone = report.get("projector", {}).get("lost", {})
        for name in self.manifest["tensors"]:
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
