"""What a strategy adds to the base's own weights: dW = adapted - base, by parameter name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmpeft.runtime.private_apis import DEQUANTIZE
from vlmpeft.strategies.low_rank import Delta, LowRank

Deltas = Iterator[tuple[str, Delta]]


def wrapper_deltas(model: nn.Module, targets: Sequence[str]) -> Deltas:
    """(name, dW) of linear layers that PEFT wraps, fp32, as they are in eval mode.

    A plain LoRA's is its product, not multiplied out. Everything else PEFT puts around a linear layer is affine, so it is asked what it
    makes of the unit vectors, above an fp32 copy of the (perhaps quantized) weight: no method's formula is needed.
    """
    for name in targets:
        wrapper: Any = model.get_submodule(name)
        if (product := _plain_lora(wrapper)) is not None:
            yield f"{name}.weight", product
            continue
        weight, bias = _probe(wrapper)
        yield f"{name}.weight", weight
        if bias.any():
            yield f"{name}.bias", bias


@torch.no_grad()
def _probe(wrapper: Any) -> tuple[Tensor, Tensor]:
    """(dW (d_out, d_in), db (d_out,)) of one wrapper."""
    base, was_training = wrapper.base_layer, wrapper.training
    weight = dequantized(base)
    bias = (
        torch.zeros(len(weight), device=weight.device) if base.bias is None else base.bias.float()
    )
    stand_in = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    stand_in.weight, stand_in.bias = _frozen(weight), _frozen(bias)
    try:
        wrapper.base_layer = stand_in
        wrapper.eval()
        with torch.autocast(weight.device.type, enabled=False):
            unit = wrapper(torch.eye(weight.shape[1], device=weight.device))
            constant = wrapper(torch.zeros(1, weight.shape[1], device=weight.device))
    finally:
        wrapper.base_layer = base
        wrapper.train(was_training)
    return (unit - constant).T - weight, constant[0] - bias


@torch.no_grad()
def _plain_lora(wrapper: Any) -> LowRank | None:
    """(alpha / r) B A, if that is all the wrapper does."""
    from peft.tuners.lora import LoraLayer

    if type(wrapper).__module__.startswith("peft.tuners.adalora"):
        return None
    if not isinstance(wrapper, LoraLayer) or wrapper.lora_variant:
        return None
    if any(wrapper.lora_bias.values()):
        return None
    (name,) = wrapper.lora_A
    a: Any = wrapper.lora_A[name].weight
    b: Any = wrapper.lora_B[name].weight
    return LowRank(wrapper.scaling[name] * b.float(), a.detach().float().clone())


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def dequantized(layer: Any) -> Tensor:
    """A linear layer's weight (d_out, d_in) in fp32, whatever holds it."""
    if layer.weight.is_floating_point():
        return layer.weight.detach().float()
    return DEQUANTIZE.get()(layer).detach().float()


def in_place_deltas(
    parameters: Mapping[str, nn.Parameter], originals: Mapping[str, Tensor]
) -> Deltas:
    """(name, dW) of parameters that are trained themselves."""
    for name, parameter in parameters.items():
        yield name, parameter.detach().float() - originals[name].float()


def add_deltas(model: nn.Module, deltas: Mapping[str, Tensor]) -> Any:
    """Add dW to a detached model; returns what takes them away again, bitwise.

    Floating weights are changed; beside a quantized linear layer dW stands as a dense product of its own.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept: dict[str, Tensor] = {}
    handles = []
    for name, delta in deltas.items():
        parameter = parameters[name]
        if parameter.is_floating_point():
            kept[name] = parameter.data
            parameter.data = (parameter.data.float() + delta.to(parameter.device)).to(parameter)
        else:
            layer = model.get_submodule(name.rpartition(".")[0])
            handles.append(layer.register_forward_hook(_Beside(delta.to(parameter.device))))

    def take_away() -> None:
        for name, data in kept.items():
            parameters[name].data = data
        for handle in handles:
            handle.remove()

    return take_away


class _Beside:
    """A forward hook: W x + dW x."""

    def __init__(self, delta: Tensor):
        self.delta = delta

    def __call__(self, _layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + F.linear(args[0].to(self.delta.dtype), self.delta).to(output)
