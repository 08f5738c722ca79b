"""Several adapter folders -> one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmpeft.adapters import (
    chat_template,
    read_manifest,
    save_adapter,
    saved_processor,
    weights_file,
)
from vlmpeft.base import BaseSpec, Bits, load_base, meta_model
from vlmpeft.components import PLANNED, Components, find_components
from vlmpeft.errors import UserError
from vlmpeft.merging.conflicts import Conflict, conflicts
from vlmpeft.merging.engine import merge
from vlmpeft.merging.operands import Operand, check_own, needs_base, read_operand
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.result import Result, attach_result, linear_weights, shape_result
from vlmpeft.plan import Plan
from vlmpeft.strategies.low_rank import LowRank, dense


@dataclass
class Merger:
    """Adapters of one base, read and ready to be merged in one way or another.

    Args:
        operands: the adapters.
        model: their base; without weights where nothing needs them.
        components: of the model.
        manifests: of the adapters.
        base: where the base is; None is where the first adapter says.
    """

    operands: list[Operand]
    model: Any
    components: Components
    manifests: list[dict[str, Any]]
    base: str | None = None

    @property
    def spec(self) -> BaseSpec:
        """The base, in the widths that the first adapter was trained on."""
        return _spec(self.manifests[0]["base"], self.base)

    @property
    def processor(self) -> Any:
        """The first adapter's."""
        return saved_processor(self.operands[0].folder)

    def conflicts(self) -> list[Conflict]:
        """Where they disagree, by component and layer."""
        return conflicts([o.deltas for o in self.operands], self.components.component_of)

    def merge(self, recipe: Recipe) -> Result:
        """What a recipe makes of them.

        Raises:
            UserError: weights of the wrong length, shapes that differ, strategies that do not combine.
        """
        self._check_lengths(recipe)
        component_of = self.components.component_of
        own = {name: s for name in PLANNED if (s := check_own(self.operands, name))}
        merged = merge([o.deltas for o in self.operands], recipe, component_of)
        result = shape_result(
            merged, recipe.final_rank, self._largest_ranks(), linear_weights(self.model)
        )
        for component, strategies in own.items():
            parts = [o.own[component] for o in self.operands]
            result.own |= {n: dense(t) for n, t in merge(parts, recipe, lambda _, c=component: c)}
            result.strategies[component] = strategies
        return result

    def _check_lengths(self, recipe: Recipe) -> None:
        given = {"weights": recipe.weights} | {
            f"component_weights.{name}": weights
            for name, weights in recipe.component_weights.items()
        }
        for name, weights in given.items():
            if weights is not None and len(weights) != len(self.operands):
                raise UserError(
                    f"{name}={list(weights)}: {len(self.operands)} adapters need as many weights"
                )

    def _largest_ranks(self) -> dict[str, int]:
        """Weight -> the largest rank that went in; without those into which something dense did."""
        found: dict[str, int] = {}
        full: set[str] = set()
        for operand in self.operands:
            for name, delta in operand.deltas.items():
                if isinstance(delta, LowRank):
                    found[name] = max(found.get(name, 0), delta.rank)
                else:
                    full.add(name)
        return {name: rank for name, rank in found.items() if name not in full}

    def save(
        self, result: Result, recipe: Recipe, out: Path, search: list[dict[str, Any]] | None = None
    ) -> Plan:
        """Write the merged adapter; it appears whole or not at all. Returns its plan.

        Args:
            result: of the merge.
            recipe: that it was made by.
            out: the folder.
            search: how the recipe's knobs were chosen, for the manifest.
        """
        first = self.manifests[0]
        attached = attach_result(result, self.model, self.components)
        folder = Path(self.operands[0].folder)
        try:
            save_adapter(
                out,
                attached,
                processor=self.processor,
                base=first["base"],
                chat_template=chat_template(folder),
                decoding=self.decoding,
                max_pixels=first.get("max_pixels"),
                card=self._card(recipe, result),
                extra={"merge": self._origin(recipe) | {"search": search}},
            )
            return attached.plan
        finally:
            attached.detach()

    @property
    def decoding(self) -> dict[str, Any] | None:
        """Limits that fit the answers of all."""
        found = [m["decoding"] for m in self.manifests if m.get("decoding")]
        if not found:
            return None
        ends = sorted({i for one in found for i in one["end_ids"]})
        return {"max_new_tokens": max(d["max_new_tokens"] for d in found), "end_ids": ends}

    def _origin(self, recipe: Recipe) -> dict[str, Any]:
        return {
            "recipe": asdict(recipe),
            "adapters": [
                {"name": Path(o.folder).name, "tensors_sha256": _digest(o)} for o in self.operands
            ],
            "paper": recipe.rule.url,
        }

    def _card(self, recipe: Recipe, result: Result) -> str:
        names = "\n".join(f"- {o.folder}" for o in self.operands)
        knobs = ", ".join(f"{k} {v}" for k, v in recipe.knobs("").items() if v is not None)
        return (
            f"# A merge by {recipe.method}\n\n{recipe.rule.paper}, {recipe.rule.url}\n\n{knobs or 'no knobs'}\n\n"
            f"of\n\n{names}\n\non base {self.manifests[0]['base']['id']}\n\n"
            f"{len(result.products)} weights as LoRA (rank up to {result.rank}, energy {100 * result.energy:.2f} %), "
            f"{len(result.tensors)} parameters dense, {len(result.own)} of their strategies' own.\n"
        )


def _digest(operand: Operand) -> str:
    return hashlib.sha256(weights_file(Path(operand.folder)).read_bytes()).hexdigest()[:16]


def read_adapters(
    folders: Sequence[str | Path], base: str | None = None, allow_mismatch: bool = False
) -> Merger:
    """Read adapters of one base.

    Args:
        folders: what `fit` or `merge` wrote.
        base: path of the base; None is what the first adapter says.
        allow_mismatch: take adapters of different bases.

    Raises:
        UserError: none given, different bases, a broken adapter.
    """
    if not folders:
        raise UserError("adapters=[]: give the folders of at least one adapter")
    manifests = [read_manifest(folder) for folder in folders]
    if not allow_mismatch:
        _check_one_base(folders, manifests)
    plans = [Plan.from_dict(manifest["plan"]) for manifest in manifests]
    specs = [_spec(manifest["base"], base) for manifest in manifests]
    if not any(needs_base(plan) for plan in plans):
        model = meta_model(specs[0])
        components = find_components(model)
        operands = [read_operand(folder, model, components) for folder in folders]
        return Merger(operands, model, components, manifests, base)
    operands, loaded = [], {}
    for folder, spec in zip(folders, specs, strict=True):
        if spec not in loaded:
            loaded = {spec: load_base(spec)}  # one at a time
        model, _, components = loaded[spec]
        operands.append(read_operand(folder, model, components))
    if specs[0] not in loaded:
        loaded = {specs[0]: load_base(specs[0])}
    model, _, components = loaded[specs[0]]
    return Merger(operands, model, components, manifests, base)


def _spec(base: dict[str, Any], path: str | None) -> BaseSpec:
    bits = {name: base["bits"][name] for name in PLANNED}
    knobs = {k: base["bits"][k] for k in ("double_quant", "compute") if k in base["bits"]}
    return BaseSpec(path or base["id"], Bits(**bits), revision=base.get("revision"), **knobs)


def _check_one_base(folders: Sequence[str | Path], manifests: Sequence[dict[str, Any]]) -> None:
    first = manifests[0]["base"]
    for folder, manifest in zip(folders, manifests, strict=True):
        base = manifest["base"]
        if base["fingerprint"] != first["fingerprint"]:
            raise UserError(
                f"adapter {folders[0]} was trained on {first['id']} (fingerprint {first['fingerprint']}) and adapter {folder} "
                f"on {base['id']} ({base['fingerprint']}): dW of different bases do not add up; "
                "--allow_base_mismatch merges them all the same"
            )
