"""Strategies that train some of a component's own weights: biases, normalisations, the last layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, Strategy
from vlmpeft.strategies.deltas import in_place_deltas


class Selected(Strategy):
    """Trains a choice of the component's parameters in place, in fp32."""

    @abstractmethod
    def select(self, component: Component) -> dict[str, nn.Parameter]:
        """Full name -> parameter to be trained.

        Raises:
            UserError: there is none, or one is quantized.
        """

    def attach(self, component: Component) -> Attachment:
        chosen = self.select(component)
        detach, deltas = train_in_place(chosen)
        return Attachment(
            component.name,
            self,
            targets=tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in chosen)),
            trainable=tuple(chosen),
            detach=detach,
            deltas=deltas,
        )


def train_in_place(parameters: Mapping[str, nn.Parameter]):  # noqa: ANN201
    """Give parameters fp32 copies of their data to be trained; returns (what puts the originals back, deltas)."""
    originals = {name: parameter.data for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.data = parameter.data.to(torch.float32, copy=True)

    def restore() -> None:
        for name, parameter in parameters.items():
            parameter.data = originals[name]
            parameter.grad = None
            parameter.requires_grad_(False)

    return restore, lambda: in_place_deltas(parameters, originals)


def refuse_quantized(
    strategy: Strategy, component: str, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Refuse integers and packed 4-bit tensors: they have no gradient.

    Raises:
        UserError: names the first, and what to set.
    """
    quantized = [n for n, p in parameters.items() if not p.is_floating_point()]
    if quantized:
        raise UserError(
            f"{type(strategy).__name__} on {component}: {len(quantized)} of its tensors are quantized (first: "
            f"{quantized[0]}) and cannot be trained; set model.base.bits.{component} to bf16 or fp32, or use LoRA"
        )


@dataclass(frozen=True)
class BitFit(Selected):
    """Train the biases alone (Ben Zaken et al. 2021, arXiv:2106.10199).

    Llama-like language models have none. Biases stay 16 bit in a quantized component, so those can be trained too.

    Args:
        learning_rate: larger than for matrices.
    """

    learning_rate: float = 1e-3

    def select(self, component: Component) -> dict[str, nn.Parameter]:
        parameters = component.parameters()
        biases = {n: p for n, p in parameters.items() if n.rpartition(".")[2].endswith("bias")}
        if not biases:
            raise UserError(
                f"BitFit on {component.name}: it has no bias at all; use LayerNormTuning or LoRA"
            )
        return biases


@dataclass(frozen=True)
class LayerNormTuning(Selected):
    """Train weights and biases of the normalisation layers (Zhao et al. 2023, arXiv:2312.11420).

    Args:
        learning_rate: larger than for matrices.
    """

    learning_rate: float = 1e-3

    def select(self, component: Component) -> dict[str, nn.Parameter]:
        norms = {
            n for n, m in component.model.named_modules() if "norm" in type(m).__name__.lower()
        }
        parameters = component.parameters()
        chosen = {n: p for n, p in parameters.items() if n.rpartition(".")[0] in norms}
        if not chosen:
            raise UserError(f"LayerNormTuning on {component.name}: it has no normalisation layer")
        return chosen


@dataclass(frozen=True)
class LastLayers(Selected):
    """Train the last n blocks of the component whole.

    Args:
        n: blocks, from the end. Of a LLaVA tower the last block is never used (vision_feature_layer -2): it gets no
            gradient and is reported as unreachable.
        learning_rate: as of full fine-tuning.
    """

    n: int = 1
    learning_rate: float = 2e-5

    def select(self, component: Component) -> dict[str, nn.Parameter]:
        blocks = component.blocks()
        if not blocks:
            raise UserError(
                f"LastLayers on {component.name}: it is not a stack of layers; use Full"
            )
        if not 1 <= self.n <= len(blocks):
            raise UserError(
                f"LastLayers n={self.n} on {component.name}: it has {len(blocks)} layers"
            )
        last = tuple(f"{name}." for name in list(blocks)[-self.n :])
        chosen = {n: p for n, p in component.parameters().items() if n.startswith(last)}
        refuse_quantized(self, component.name, chosen)
        return chosen
