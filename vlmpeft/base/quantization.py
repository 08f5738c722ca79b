"""Linear layers of one component replaced by bitsandbytes' own, where one config cannot say it."""

from __future__ import annotations

import importlib
import logging
from types import MethodType
from typing import Any

import torch
from torch import nn

from vlmpeft.base.components import Components


def quantize_linears(
    model: Any,
    components: Components,
    component: str,
    width: str,
    double_quant: bool,
    compute_dtype: torch.dtype,
) -> int:
    """Replace every linear layer of a component but those `kept_whole`; returns how many.

    One BitsAndBytesConfig has one width, so a component of another width is loaded whole and replaced here.

    Args:
        model: loaded, on its device.
        components: of the model.
        component: which one.
        width: nf4, fp4 or int8.
        double_quant: also quantize the 4-bit blocks' scales.
        compute_dtype: of the products of 4-bit layers.
    """
    kept = components.kept_whole()
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and name not in kept
        and components.component_of(name) == component
    }
    for name, layer in found.items():
        parent, _, leaf = name.rpartition(".")
        new = _int8(layer) if width == "int8" else _4bit(layer, width, double_quant, compute_dtype)
        setattr(model.get_submodule(parent), leaf, new)
    return len(found)


@torch.no_grad()
def requantized(layer: Any, weight: torch.Tensor) -> Any:
    """A bitsandbytes layer like `layer`, of another weight (d_out, d_in), in the same bits and blocks."""
    whole = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    dtype = layer.compute_dtype if hasattr(layer, "compute_dtype") else torch.float16
    state = getattr(layer.weight, "quant_state", None)
    whole.weight = nn.Parameter(weight.to(state.dtype if state else dtype), requires_grad=False)
    whole.bias = layer.bias
    whole.train(layer.training)
    if state is None:
        return _int8(whole)
    return _4bit(whole, state.quant_type, state.nested, layer.compute_dtype)


def _4bit(layer: nn.Linear, width: str, double_quant: bool, compute_dtype: torch.dtype) -> Any:
    nn_4bit: Any = importlib.import_module("bitsandbytes.nn")  # its types are not to be had
    new = nn_4bit.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=compute_dtype,
        compress_statistics=double_quant,
        quant_type=width,
        device="meta",
    )
    new.weight = nn_4bit.Params4bit(
        layer.weight.data,
        requires_grad=False,
        compress_statistics=double_quant,
        quant_type=width,
        module=new,
    )
    return _finished(new, layer)


def _int8(layer: nn.Linear) -> Any:
    nn_int8: Any = importlib.import_module("bitsandbytes.nn")
    new = nn_int8.Linear8bitLt(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,  # LLM.int8()'s, as transformers has it
        device="meta",
    )
    new.weight = nn_int8.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    return _finished(new, layer)


def _finished(new: Any, layer: nn.Linear) -> Any:
    new.bias = layer.bias
    return new.to(layer.weight.device).train(layer.training)  # the move quantizes


def silence_casts() -> None:
    """Bitsandbytes says at every call of an int8 layer that it casts its input to 16 bits."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def keep_int8_statistics(model: nn.Module) -> None:
    """Let int8 weights keep their scales when a forward reads them.

    The first forward moves them from the weight to the layer's state; PEFT's DoRA then makes a new weight without any, and
    the next forward fails (bitsandbytes 0.50, peft 0.21, on a CPU).
    """
    for module in model.modules():
        if hasattr(module, "init_8bit_state"):
            setattr(module, "init_8bit_state", MethodType(_read_statistics, module))  # noqa: B010


def _read_statistics(layer: Any) -> None:
    layer.state.CB = layer.weight.CB
    if layer.weight.SCB is not None:
        layer.state.SCB = layer.weight.SCB
