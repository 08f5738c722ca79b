"""`merge --to merged`: several adapters into a copy of their base's files, a tensor at a time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from vlmpeft.base.components import PLANNED
from vlmpeft.base.fingerprint import fingerprint
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import QUANTIZED, BaseSpec, Bits
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.decoding import limits_of
from vlmpeft.evaluation.equivalence import TOLERANCE, encode_items, make_trial, read_items
from vlmpeft.export.answer_gate import ALONE, ATTACHED, Routes
from vlmpeft.export.card import whole_merge_card
from vlmpeft.export.checkpoint import set_limits, stored_width
from vlmpeft.export.patch_files import Patched, check_untouched, copy_weights, patch
from vlmpeft.export.reload import encode_again, load_checkpoint
from vlmpeft.export.target_weights import starts_from_quantized
from vlmpeft.export.tensor_locations import check_places, find_places
from vlmpeft.merging.engine import shapes_of
from vlmpeft.merging.merger import Merger
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.result import attach_result
from vlmpeft.runtime.atomic_folder import written_whole
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.provenance import versions

GateName = Literal["answers", "weights"]
_REPORT = "merge.json"


@dataclass
class WholeMerge:
    """A merge on its way into a checkpoint.

    Args:
        merger: the adapters.
        recipe: how they are merged.
        gate: answers: the checkpoint that was written answers as the base with the merge attached, for which both are loaded
            one after the other; weights: every tensor is read back, every other byte is the base's, and nothing is loaded.
        data: files of conversations for the answers; empty is the built-in task.
        samples: of them that are asked.
    """

    merger: Merger
    recipe: Recipe
    gate: GateName = "answers"
    data: tuple[str, ...] = ()
    samples: int = 8
    patched: Patched = field(default_factory=Patched)

    def __post_init__(self) -> None:
        self.spec = self.merger.spec
        self.width = stored_width(self.spec)
        self.places = find_places(self.spec, self.merger.model)

    def check(self) -> None:
        """Refuse what cannot be merged this way, before anything is written.

        Raises:
            UserError: another base, adapters without dW, a tensor that the files do not hold as one.
        """
        found, said = fingerprint(self.spec), self.merger.origin.fingerprint
        if found != said:
            raise UserError(
                f"base {self.spec.path} has fingerprint {found}, and adapter {self.merger.operands[0].folder} was trained on "
                f"{said}: its files have changed since; give those it was trained on: --base PATH"
            )
        for operand in self.merger.operands:
            self._check_operand(operand)
        check_places(self.places, shapes_of([o.deltas for o in self.merger.operands]))

    def _check_operand(self, operand: Any) -> None:
        if operand.own:
            component = next(iter(operand.own))
            names = " and ".join(type(s).__name__ for s in operand.strategies(component))
            raise UserError(
                f"--to merged: {names} on {component} of adapter {operand.folder} is no change of weights, so it has no dW to "
                "merge into the base; --to adapter"
            )
        if starts_from_quantized(operand.adapter.plan):
            raise UserError(
                f"--to merged: LoRA init=loftq of adapter {operand.folder} makes up for what quantization lost, so on whole "
                "weights it would be added twice; --to adapter, then export --to merged --onto dequantized"
            )

    def write(self, out: Path, extra: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint; it appears whole or not at all. Returns the report.

        Args:
            out: the folder.
            extra: more of the report.

        Raises:
            GateFailed: what was written is not what it should be.
        """
        self.check()
        with written_whole(out) as scratch:
            copy_weights(self.spec, scratch)
            self.patched = patch(scratch, self.places, self.merger.stream(self.recipe))
            compared = check_untouched(self.spec, scratch, self.patched)
            self._write_rest(scratch)
            report = self._report(compared) | extra
            if self.gate == "answers":
                report["gate"] |= self._compare_answers(scratch)
            (scratch / _REPORT).write_text(json.dumps(report, indent=1) + "\n")
            (scratch / "README.md").write_text(whole_merge_card(report))
        return report

    def _write_rest(self, scratch: Path) -> None:
        """Processor and generation config, beside the base's own config."""
        processor, decoding = self.merger.processor, self.merger.decoding
        processor.save_pretrained(scratch)
        if decoding:
            settings = _generation_config(scratch)
            set_limits(settings, limits_of(decoding, processor.tokenizer))
            settings.save_pretrained(scratch)

    # -- the gate ------------------------------------------------------------------------------

    def _compare_answers(self, scratch: Path) -> dict[str, Any]:
        """The merge attached to the base in its own width, and the files as loaded by transformers alone."""
        bits = Bits(self.width, self.width, self.width)  # type: ignore[arg-type]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        spec = BaseSpec(self.spec.path, bits, revision=self.spec.revision)
        model, _, components = load_base(spec, device)
        pixels = self.merger.first.manifest.max_pixels
        encoder = Encoder(self.merger.processor, None, pixels)
        items = [i for d in self.data or (None,) for i in read_items(d, None, self.samples)]
        samples = encode_items(items, encoder)
        routes = Routes(make_trial(model, self.merger.processor, self.merger.decoding, samples))
        routes.ask(ALONE, model)
        attach_result(self.merger.exact(self.recipe), model, components)
        routes.ask(ATTACHED, model)
        del model
        written = load_checkpoint(str(scratch), device=device)
        routes.ask("merged", written, encode_again(samples, scratch, pixels))
        gate = routes.check("merged", ATTACHED, ALONE, TOLERANCE[self.width], only=False)
        return gate | {"samples": len(samples)}

    # -- what is said of it --------------------------------------------------------------------

    def _report(self, compared: int) -> dict[str, Any]:
        component_of = self.merger.components.component_of
        changed = [component_of(name) for name in self.patched.places]
        return {
            "format": 1,
            "to": "merged",
            "recipe": asdict(self.recipe),
            "paper": [self.recipe.rule.paper, self.recipe.rule.url],
            "adapters": self.merger.origins(),
            "base": self.merger.origin.to_dict(),
            "width": self.width,
            "gate": {
                "kind": self.gate,
                "tensors_read_back": len(self.patched.places),
                "bytes_of_base_unchanged": compared,
            },
            "components": {name: changed.count(name) for name in PLANNED},
            "lost_in_rounding": self.patched.lost,
            "notes": self._notes(),
            "versions": versions(),
        }

    def _notes(self) -> list[str]:
        origins = [operand.adapter.manifest.base for operand in self.merger.operands]
        bits = {origin.bits[name] for origin in origins for name in PLANNED}
        notes = []
        if quantized := sorted(bits & {*QUANTIZED}):
            notes.append(
                f"trained on {' + '.join(quantized)} weights, merged into the checkpoint's own {self.width} weights: another "
                "base than the one they were trained on; export --to merged says how much that changes"
            )
        if pixels := self.merger.first.manifest.max_pixels:
            notes.append(
                f"pictures above {pixels} pixels were scaled down before the processor saw them; scale yours down as well"
            )
        return notes


def _generation_config(folder: Path) -> Any:
    """The base's own, or what transformers makes of its config."""
    from transformers import AutoConfig, GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    )
