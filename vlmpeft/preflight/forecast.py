"""What a plan takes on a device: its static bytes, and a rehearsed step with and without checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from vlmpeft.base.components import find_components
from vlmpeft.base.loading import compute_dtype, meta_model, recompute_activations
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.preflight.dummy_batch import Blank, blank_conversation
from vlmpeft.preflight.static_memory import (
    FP32,
    StaticBytes,
    attached_widths,
    static_bytes,
    weight_widths,
)
from vlmpeft.preflight.step_memory import Rehearsed, Stage
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import Full, LoRA, Strategy
from vlmpeft.strategies.plan import AttachedPlan, Plan, attach

PLAIN, CHECKPOINTED = "plain", "checkpointed"
DEFAULT_RANK = 16


@dataclass(frozen=True)
class Load:
    """What a step is given.

    Args:
        blank: a conversation of the base's.
        batch: conversations a step.
        tokens: of each, image tokens included.
        answer_tokens: of each that are supervised.
        accumulates: whether gradients are kept over several batches.
        optimizer: a key of OPTIMIZER_BYTES.
    """

    blank: Blank
    batch: int
    tokens: int
    answer_tokens: int
    accumulates: bool = False
    optimizer: str = "adamw"


@dataclass(frozen=True)
class Forecast:
    """One plan on one base.

    Args:
        static: whatever the batch is.
        steps: plain and checkpointed; without the second where a model cannot, empty if nothing could be rehearsed.
        unknown: why steps are missing.
        summary: of the attached plan.
        update_bytes: passing tensors of the optimizer's step, beside the gradients.
    """

    static: StaticBytes
    steps: dict[str, Rehearsed]
    unknown: str
    summary: dict[str, Any]
    update_bytes: int

    def peak(self, kind: str) -> int:
        """Most bytes at once: weights, adapters, optimizer state, and the worst moment of the step."""
        held = self.static.total - self.static.gradients
        update = self.static.gradients + self.update_bytes
        return held + max(self.steps[kind].peak_bytes, update)


def forecast(
    spec: BaseSpec,
    plan: Plan,
    load: Load,
    device: torch.device,
    kinds: tuple[str, ...] = (PLAIN, CHECKPOINTED),
) -> Forecast:
    """Estimate a plan on a base of which only the config is read.

    Args:
        spec: the base and its bits.
        plan: what is trained.
        load: the batch.
        device: cpu, or cuda for bf16 under autocast; it need not be there.
        kinds: of steps that are rehearsed.
    """
    attached, base_widths = _attached(spec, plan, device)
    static = static_bytes(attached, base_widths, spec.double_quant, load.optimizer)
    summary, sizes = attached.summary(), [FP32 * p.numel() for p in attached.trainable().values()]
    update = sum(sizes) if device.type == "cuda" else 2 * max(sizes, default=0)
    steps: dict[str, Rehearsed] = {}
    unknown, stage = "", _stage(spec, attached, base_widths, device)
    try:
        steps.update(_rehearsals(stage, load, kinds))
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError) as error:
        unknown = " ".join(str(error).split())[:200]
    return Forecast(static, steps, unknown, summary, update)


def _attached(spec: BaseSpec, plan: Plan, device: torch.device) -> tuple[AttachedPlan, Any]:
    model = meta_model(spec)
    components = find_components(model)
    base_widths = weight_widths(model, components, spec, device)
    return attach(plan, model, components), base_widths


def _stage(spec: BaseSpec, attached: AttachedPlan, base_widths: Any, device: torch.device) -> Stage:
    widths, compute = attached_widths(attached, base_widths), compute_dtype(spec, device)
    return Stage(attached, widths, compute, autocast=device.type == "cuda")


def _rehearsals(
    stage: Stage, load: Load, kinds: tuple[str, ...]
) -> Iterator[tuple[str, Rehearsed]]:
    batch = load.blank.batch(load.batch, load.tokens, load.answer_tokens)
    if PLAIN in kinds:
        yield PLAIN, stage.rehearse(batch, load.accumulates)
    if CHECKPOINTED in kinds:
        recompute_activations(stage.model)
        yield CHECKPOINTED, stage.rehearse(batch, load.accumulates)


def blank_of(spec: BaseSpec, max_pixels: int | None, chat_template: str | None = None) -> Blank:
    """A blank conversation of a base, of which no weights are read."""
    cpu = torch.device("cpu")
    stage = _stage(spec, *_attached(spec, Plan(), cpu), cpu)
    return blank_conversation(spec, stage.model, stage.image_tokens, max_pixels, chat_template)


def full_fine_tuning(spec: BaseSpec) -> tuple[BaseSpec, Plan]:
    """Every component trained whole."""
    bits = Bits(language="auto")
    base = BaseSpec(path=spec.path, bits=bits, revision=spec.revision)
    return base, Plan(Full(), Full(), Full())


def qlora(spec: BaseSpec, plan: Plan) -> tuple[BaseSpec, Plan]:
    """QLoRA (arXiv:2305.14314): the plan's rank on every linear layer of language, nf4 with double quantization."""
    base = BaseSpec(path=spec.path, bits=Bits(), revision=spec.revision)
    return base, Plan(language=LoRA(r=rank_of(plan) or DEFAULT_RANK))


def rank_of(plan: Plan) -> int | None:
    """The largest `r` among a plan's strategies, None if none has one."""
    return max((s.r for s in _ranked(plan)), default=None)


def with_rank(plan: Plan, r: int) -> Plan:
    """The plan with every strategy that has a rank at this one."""

    def changed(strategy: Strategy) -> Strategy:
        has_rank = strategy in _ranked(plan)
        return replace(strategy, r=r) if has_rank else strategy  # type: ignore[type-var, call-arg]

    return Plan(**{f.name: [changed(s) for s in plan.of(f.name)] for f in fields(plan)})


def most_rank(spec: BaseSpec, plan: Plan) -> int:
    """The largest rank that every target of the plan's ranked strategies allows."""
    model = meta_model(spec)
    attached = attach(with_rank(plan, 1), model, find_components(model))
    layers = [
        model.get_submodule(target)
        for attachment in attached.attachments
        if hasattr(attachment.strategy, "r")
        for target in attachment.targets
    ]
    return min(min(layer.in_features, layer.out_features) for layer in layers)


def _ranked(plan: Plan) -> list[Any]:
    strategies = [s for f in fields(plan) for s in plan.of(f.name)]
    return [s for s in strategies if is_dataclass(s) and hasattr(s, "r")]


def check_length(blank: Blank, tokens: int, place: str) -> None:
    """Raise a UserError if a conversation of this length has no room for an answer."""
    if tokens <= blank.start:
        raise UserError(
            f"{place}: {tokens} tokens are too few, the picture alone takes {blank.image_tokens} and the prompt "
            f"{blank.start - blank.image_tokens}; give at least {blank.start + 1}, or lower data.max_pixels"
        )
