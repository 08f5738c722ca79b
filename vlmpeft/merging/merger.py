"""Several adapter folders -> one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vlmpeft.adapters.adapter import Adapter, Decoding, Origin
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
        spec: the base, in the widths that the first adapter was trained on.
        origin: what the merged adapter says of the base.
    """

    operands: list[Operand]
    model: Any
    components: Components
    spec: BaseSpec
    origin: Origin

    @property
    def first(self) -> Adapter:
        """The adapter whose processor, template and picture size the merge takes over."""
        return self.operands[0].adapter

    @property
    def processor(self) -> Any:
        """The first adapter's."""
        return self.first.processor

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
        decoding = self.decoding
        attached = attach_result(result, self.model, self.components)
        try:
            save_adapter(
                out,
                attached,
                processor=self.processor,
                base=self.origin.to_dict(),
                chat_template=self.first.chat_template,
                decoding=decoding and decoding.to_dict(),
                max_pixels=self.first.manifest.max_pixels,
                card=self._card(recipe, result),
                extra={
                    "merge": self._history(recipe) | {"search": search, "mismatches": mismatches}
                },
            )
            return attached.plan
        finally:
            attached.detach()

    @property
    def decoding(self) -> Decoding | None:
        """Limits that fit the answers of all."""
        found = [d for o in self.operands if (d := o.adapter.manifest.decoding)]
        if not found:
            return None
        ends = {i for one in found for i in one.end_ids}
        return Decoding(max(one.max_new_tokens for one in found), tuple(sorted(ends)))

    def _history(self, recipe: Recipe) -> dict[str, Any]:
        rule = recipe.rule
        return {"recipe": asdict(recipe), "adapters": self.origins(), "paper": rule.url}

    def origins(self) -> list[dict[str, str]]:
        """What went in: folders' names and hashes of their weights."""
        adapters = [operand.adapter for operand in self.operands]
        return [{"name": a.path.name, "tensors_sha256": a.digest()} for a in adapters]

    def _card(self, recipe: Recipe, result: Result) -> str:
        names = "\n".join(f"- {o.folder}" for o in self.operands)
        knobs = ", ".join(f"{k} {v}" for k, v in recipe.knobs("").items() if v is not None)
        return (
            f"# A merge by {recipe.method}\n\n{recipe.rule.paper}, {recipe.rule.url}\n\n{knobs or 'no knobs'}\n\n"
            f"of\n\n{names}\n\non base {self.origin.id}\n\n"
            f"{len(result.products)} weights as LoRA (rank up to {result.rank}, energy {100 * result.energy:.2f} %), "
            f"{len(result.tensors)} parameters dense, {len(result.own)} of their strategies' own.\n"
        )


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
    adapters = [Adapter.read(folder) for folder in folders]
    first, here = adapters[0], base_of_merge(adapters[0], base)
    if not allow_mismatch:
        check_one_base(adapters, here, base)
    spec = first.trained_base(base)
    if any(needs_base(adapter.plan) for adapter in adapters):
        return _read_on_weights(adapters, spec, here, base)
    model = meta_model(spec)
    components = find_components(model)
    operands = []
    for adapter in adapters:
        with bases_named(adapter.manifest.base.id, here.id):
            operands.append(_take(adapter, model, components))
    return Merger(operands, model, components, spec, here)


def _read_on_weights(
    adapters: Sequence[Adapter], spec: BaseSpec, here: Origin, base: str | None
) -> Merger:
    """Each adapter on its own base with weights, one base at a time."""
    operands, loaded = [], {}
    for adapter in adapters:
        is_here = adapter.manifest.base.fingerprint == here.fingerprint
        own = adapter.trained_base(base if is_here else None)
        if own not in loaded:
            loaded = {own: load_base(own)}
        model, _, components = loaded[own]
        operands.append(_take(adapter, model, components))
    if spec not in loaded:
        loaded = {spec: load_base(spec)}
    model, _, components = loaded[spec]
    return Merger(operands, model, components, spec, here)


def _take(adapter: Adapter, model: Any, components: Components) -> Operand:
    """What an adapter brings; its tensors are not kept beside that."""
    try:
        return read_operand(adapter, model, components)
    finally:
        adapter.forget_tensors()
