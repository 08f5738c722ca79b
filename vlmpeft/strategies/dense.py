"""A change of weights as it is, with a number for every weight: what a merge leaves that no LoRA can carry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, Strategy, is_plain_linear
from vlmpeft.strategies.deltas import Deltas
from vlmpeft.strategies.selected import refuse_quantized, train_in_place

DELTA = "dense_delta"  # the parameter beside a linear layer's weight


@dataclass(frozen=True)
class Dense(Strategy):
    """W x + dW x with a dense dW for the named weights; other named parameters are replaced. `merge` writes it.

    Beside linear layers dW stands as a product of its own, so it works on quantized weights too. Biases,
    normalisations, embeddings and weights that modules share are changed in place.

    Args:
        names: full names of the base's parameters.
        learning_rate: if it is trained on.
    """

    names: tuple[str, ...] = ()
    learning_rate: float = 2e-5

    def attach(self, component: Component) -> Attachment:
        there = component.parameters()
        missing = [name for name in self.names if name not in there]
        if missing or not self.names:
            wrong = missing[0] if missing else "[]"
            raise UserError(f"Dense names={wrong}: no such parameter on {component.name}")
        beside = self._linears(component)
        inside = {name: there[name] for name in self.names if name not in beside}
        refuse_quantized(self, component.name, inside)
        restore, in_place = train_in_place(inside)
        remove = [_insert(layer) for layer in beside.values()]

        def detach() -> None:
            for take_out in remove:
                take_out()
            restore()

        def deltas() -> Deltas:
            yield from in_place()
            for name, layer in beside.items():
                yield name, getattr(layer, DELTA).detach().float()

        new = tuple(f"{name.rpartition('.')[0]}.{DELTA}" for name in beside)
        return Attachment(
            component.name,
            self,
            targets=tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.names)),
            trainable=(*inside, *new),
            added=sum(getattr(layer, DELTA).numel() for layer in beside.values()),
            detach=detach,
            deltas=deltas,
        )

    def _linears(self, component: Component) -> dict[str, Any]:
        """Weight's name -> its linear layer, of those that are nobody else's."""
        found = dict(carriers(component.model))
        return {name: found[name] for name in self.names if name in found}


def carriers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(weight's name, linear layer) of every linear layer beside which dW can stand: no other module has its weight."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, module in model.named_modules():
        if is_plain_linear(module) and owners.get(id(module.weight)) == 1:
            yield f"{name}.weight", module


def _insert(layer: Any) -> Any:
    """Give a linear layer its dW, zero, and the hook that adds it; returns what takes both out."""
    weight = layer.weight
    device = weight.device
    delta = torch.zeros(layer.out_features, layer.in_features, device=device)
    layer.register_parameter(DELTA, nn.Parameter(delta))
    handle = layer.register_forward_hook(_add)

    def remove() -> None:
        handle.remove()
        del layer._parameters[DELTA]

    return remove


def _add(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    delta = getattr(layer, DELTA)
    return output + F.linear(args[0].to(delta.dtype), delta).to(output)
