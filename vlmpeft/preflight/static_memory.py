"""Bytes of a plan before anything is loaded: weights, adapters, gradients, optimizer state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from vlmpeft.base.components import COMPONENTS, Components
from vlmpeft.base.loading import quantization_config
from vlmpeft.base.spec import QUANTIZED, BaseSpec
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.private_apis import SHOULD_CONVERT
from vlmpeft.strategies.plan import AttachedPlan

FP32 = 4
WIDTH_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
BLOCK, NESTED_BLOCK = 64, 256  # bitsandbytes' own: weights a scale, scales a scale of scales
CODE, NESTED_CODE, OFFSET = 16 * FP32, 256 * FP32, FP32  # tables that every 4-bit tensor carries
OPTIMIZER_BYTES = {"adamw": 8}  # a trained parameter: two fp32 moments
FULL_FINE_TUNING_BYTES = 16  # a parameter: bf16 weight and gradient, fp32 master weight and moments


def tensor_bytes(shape: Sequence[int], width: str, double_quant: bool = True) -> int:
    """Bytes of one weight tensor at a width.

    nf4 and fp4: half a byte a weight, an fp32 scale a block of 64, and with double quantization 8-bit scales with an
    fp32 scale of their own a block of 256 (QLoRA, section 3); int8: an fp32 scale a row.

    >>> 8 * tensor_bytes((4096, 4096), "nf4", double_quant=False) / 4096**2 < 4.501
    True
    >>> round(8 * tensor_bytes((4096, 4096), "nf4") / 4096**2, 3)
    4.127
    """
    count = prod(shape)
    if width in WIDTH_BYTES:
        return count * WIDTH_BYTES[width]
    if width == "int8":
        return count + FP32 * shape[0]
    blocks = -(-count // BLOCK)
    scales = FP32 * blocks
    if double_quant:
        scales = blocks + FP32 * -(-blocks // NESTED_BLOCK) + NESTED_CODE + OFFSET
    return -(-count // 2) + scales + CODE


def weight_widths(
    model: Any, components: Components, spec: BaseSpec, device: torch.device
) -> dict[nn.Parameter, str]:
    """Width of every parameter of a base as `load_base` would hold it; of a meta model, before a plan.

    What bitsandbytes leaves out (embeddings, norms, biases, convolutions, the output head) stays in the load's dtype.
    """
    default, wanted = plain_width(device), _wanted_widths(spec, device)
    quantized = _quantized_weights(model, components, spec, device)
    widths = {}
    for name, parameter in model.named_parameters():
        width = wanted.get(components.component_of(name), default)
        widths[parameter] = default if width in QUANTIZED else width
    return widths | quantized


def _wanted_widths(spec: BaseSpec, device: torch.device) -> dict[str, str]:
    """As `resolve_bits`, for a device that need not be there."""
    bits, auto = asdict(spec.bits), plain_width(device)
    return {name: auto if width == "auto" else width for name, width in bits.items()}


def _quantized_weights(
    model: Any, components: Components, spec: BaseSpec, device: torch.device
) -> dict[nn.Parameter, str]:
    """Weights that transformers replaces as its config says, and those that we replace by component."""
    should_convert_module = SHOULD_CONVERT.get()
    wanted = _wanted_widths(spec, device)
    config = quantization_config(spec, wanted, components, device)
    if config is None:
        return {}
    main = "int8" if config.load_in_8bit else config.bnb_4bit_quant_type
    skip = [*config.llm_int8_skip_modules, *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    found, kept = {}, components.kept_whole()
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        width = wanted.get(components.component_of(name), "")
        if should_convert_module(name, skip):
            found[module.weight] = main
        elif width in QUANTIZED and width != main and name not in kept:
            found[module.weight] = width
    return found


def plain_width(device: torch.device) -> str:
    """What a base is loaded in where no width says otherwise."""
    return "fp32" if device.type == "cpu" else "bf16"


@dataclass(frozen=True)
class StaticBytes:
    """What a plan holds whatever the batch is.

    Args:
        weights: component -> width -> bytes, of the base; what is trained in place is fp32.
        adapters: of parameters the base did not have, fp32.
        gradients: of all trained parameters, fp32.
        optimizer: its state.
    """

    weights: Mapping[str, Mapping[str, int]]
    adapters: int
    gradients: int
    optimizer: int

    @property
    def weight_total(self) -> int:
        return sum(sum(widths.values()) for widths in self.weights.values())

    @property
    def total(self) -> int:
        return self.weight_total + self.adapters + self.gradients + self.optimizer


def attached_widths(
    attached: AttachedPlan, base_widths: Mapping[nn.Parameter, str]
) -> dict[str, str]:
    """Width of every parameter under an attached plan, by its name there; what is trained is fp32.

    Raises:
        UserError: a plan that trains quantized weights.
    """
    trainable, widths = attached.trainable(), {}
    for name, parameter in attached.model.named_parameters():
        width = base_widths.get(parameter, "fp32")
        if name in trainable and width in QUANTIZED:
            component = attached.components.component_of(name)
            raise UserError(
                f"model.plan.{component} trains {name}, which is {width}, and quantized weights cannot be "
                f"trained; set model.base.bits.{component} to bf16 or fp32, or use LoRA"
            )
        widths[name] = "fp32" if name in trainable else width
    return widths


def static_bytes(
    attached: AttachedPlan,
    base_widths: Mapping[nn.Parameter, str],
    double_quant: bool = True,
    optimizer: str = "adamw",
) -> StaticBytes:
    """Bytes of an attached plan's weights, adapters, gradients and optimizer state.

    Args:
        attached: a plan on a model, of the meta device for instance.
        base_widths: of `weight_widths`, taken before the plan was attached.
        double_quant: of the 4-bit widths.
        optimizer: a key of OPTIMIZER_BYTES.
    """
    widths = attached_widths(attached, base_widths)
    weights: dict[str, Counter[str]] = {name: Counter() for name in COMPONENTS}
    adapters = 0
    for name, parameter in attached.model.named_parameters():
        size = tensor_bytes(parameter.shape, widths[name], double_quant)
        if parameter in base_widths:
            weights[attached.components.component_of(name)][widths[name]] += size
        else:
            adapters += size
    trained = attached.trainable().values()
    count = sum(parameter.numel() for parameter in trained)
    state = OPTIMIZER_BYTES[optimizer] * count + FP32 * len(trained)  # and each tensor's step count
    return StaticBytes({c: dict(w) for c, w in weights.items()}, adapters, FP32 * count, state)


def convention_bytes(trained: int, frozen_16_bit: int = 0) -> int:
    """The papers' full fine-tuning: 16 bytes a trained parameter (ZeRO, arXiv:1910.02054, section 3.1), 2 a frozen one.

    >>> convention_bytes(7_000_000_000)
    112000000000
    """
    return FULL_FINE_TUNING_BYTES * trained + 2 * frozen_16_bit


def shortcut_bytes(base: int, added: int) -> int:
    """The literature's shortcut for QLoRA: half a byte a base parameter, two bytes an adapter parameter."""
    return base // 2 + 2 * added


def largest(size: Callable[[int], int], limit: int, start: int = 1, most: int | None = None) -> int:
    """The largest n with size(n) <= limit, 0 if there is none, by interpolation; size grows about linearly.

    Args:
        size: of n, in bytes.
        limit: in bytes.
        start: the first n that is tried.
        most: the largest n there is.

    >>> largest(lambda n: 100 + 7 * n, 1000)
    128
    """
    known = {n: size(n) for n in {start, 2 * start if most is None else min(2 * start, most)}}
    low = max((n for n, found in known.items() if found <= limit), default=0)
    high = min((n for n, found in known.items() if found > limit), default=most and most + 1)
    while high is None or high - low > 1:
        (a, size_a), *_, (b, size_b) = sorted(known.items())[-2:]
        slope = max(1e-9, (size_b - size_a) / max(1, b - a))
        guess = max(low + 1, int(a + (limit - size_a) / slope))
        guess = guess if high is None else min(guess, high - 1)
        known[guess] = size(guess)
        low, high = (guess, high) if known[guess] <= limit else (low, guess)
    return low
