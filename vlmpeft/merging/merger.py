"""Several adapter folders -> one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vlmpeft.adapters.loading import chat_template, saved_processor, trained_base, weights_file
from vlmpeft.adapters.manifest import read_manifest
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.components import PLANNED, Components, find_components
from vlmpeft.base.loading import load_base, meta_model
from vlmpeft.base.spec import BaseSpec
from vlmpeft.merging.conflicts import Conflict, conflicts
from vlmpeft.merging.engine import merge
from vlmpeft.merging.operands import (
    Operand,
    base_of_merge,
    bases_named,
    check_one_base,
    check_own,
    needs_base,
    read_operand,
)
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.result import Result, attach_result, linear_weights, shape_result
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.low_rank import Delta, LowRank, dense
from vlmpeft.strategies.plan import Plan


@dataclass
class Merger:
    """Adapters, read and ready to be merged in one way or another.

    Args:
        operands: the adapters.
        model: the base that the merge is for; without weights where nothing needs them.
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
        return trained_base(self.operands[0].folder, self.base)

    @property
    def origin(self) -> dict[str, Any]:
        """What a manifest says of the base: as the first adapter's does, unless --base is another."""
        return base_of_merge(self.operands[0].folder, self.base)

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

    def stream(self, recipe: Recipe) -> Iterator[tuple[str, Delta]]:
        """(parameter, merged dW), one at a time; exact unless the recipe or its rule names a rank.

        Raises:
            UserError: weights of the wrong length, shapes that differ.
        """
        self._check_lengths(recipe)
        merged = merge([o.deltas for o in self.operands], recipe, self.components.component_of)
        if recipe.final_rank in ("auto", "full"):
            yield from merged
            return
        largest, linears = self._largest_ranks(), linear_weights(self.model)
        for item in merged:
            result = shape_result([item], recipe.final_rank, largest, linears)
            yield from (result.products | result.tensors).items()

    def exact(self, recipe: Recipe) -> Result:
        """The same, whole."""
        whole = recipe.final_rank in ("auto", "full")
        return self.merge(replace(recipe, rank="full") if whole else recipe)

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
        self,
        result: Result,
        recipe: Recipe,
        out: Path,
        search: list[dict[str, Any]] | None = None,
        mismatches: list[dict[str, Any]] | None = None,
    ) -> Plan:
        """Write the merged adapter; it appears whole or not at all. Returns its plan.

        Args:
            result: of the merge.
            recipe: that it was made by.
            out: the folder.
            search: how the recipe's knobs were chosen, for the manifest.
            mismatches: scores of adapters of other bases, for the manifest.
        """
        first = self.manifests[0]
        attached = attach_result(result, self.model, self.components)
        folder = Path(self.operands[0].folder)
        try:
            save_adapter(
                out,
                attached,
                processor=self.processor,
                base=self.origin,
                chat_template=chat_template(folder),
                decoding=self.decoding,
                max_pixels=first.get("max_pixels"),
                card=self._card(recipe, result),
                extra={
                    "merge": self._history(recipe) | {"search": search, "mismatches": mismatches}
                },
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

    def _history(self, recipe: Recipe) -> dict[str, Any]:
        rule = recipe.rule
        return {"recipe": asdict(recipe), "adapters": self.origins(), "paper": rule.url}

    def origins(self) -> list[dict[str, str]]:
        """What went in: folders' names and hashes of their weights."""
        return [{"name": Path(o.folder).name, "tensors_sha256": _digest(o)} for o in self.operands]

    def _card(self, recipe: Recipe, result: Result) -> str:
        names = "\n".join(f"- {o.folder}" for o in self.operands)
        knobs = ", ".join(f"{k} {v}" for k, v in recipe.knobs("").items() if v is not None)
        return (
            f"# A merge by {recipe.method}\n\n{recipe.rule.paper}, {recipe.rule.url}\n\n{knobs or 'no knobs'}\n\n"
            f"of\n\n{names}\n\non base {self.origin['id']}\n\n"
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
        allow_mismatch: take adapters of different bases; dW of each is against its own.

    Raises:
        UserError: none given, different bases, a broken adapter.
    """
    if not folders:
        raise UserError("adapters=[]: give the folders of at least one adapter")
    manifests = [read_manifest(folder) for folder in folders]
    here = base_of_merge(folders[0], base)
    if not allow_mismatch:
        check_one_base(folders, here, base)
    plans = [Plan.from_dict(manifest["plan"]) for manifest in manifests]
    spec = trained_base(folders[0], base)
    if not any(needs_base(plan) for plan in plans):
        model = meta_model(spec)
        components = find_components(model)
        operands = []
        for folder, manifest in zip(folders, manifests, strict=True):
            with bases_named(manifest["base"]["id"], here["id"]):
                operands.append(read_operand(folder, model, components))
        return Merger(operands, model, components, manifests, base)
    operands, loaded = [], {}
    for folder, manifest in zip(folders, manifests, strict=True):
        is_here = manifest["base"]["fingerprint"] == here["fingerprint"]
        own = trained_base(folder, base if is_here else None)
        if own not in loaded:
            loaded = {own: load_base(own)}  # one at a time
        model, _, components = loaded[own]
        operands.append(read_operand(folder, model, components))
    if spec not in loaded:
        loaded = {spec: load_base(spec)}
    model, _, components = loaded[spec]
    return Merger(operands, model, components, manifests, base)
