"""A training step rehearsed on tensors without memory: what it would keep and compute."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmpeft.base.spec import DTYPES
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.preflight.fake_tensors import Weightless, has_memory
from vlmpeft.strategies.plan import AttachedPlan

BACKWARD = "backward"


@dataclass(frozen=True)
class Rehearsed:
    """What one step would take beyond weights and optimizer state.

    Args:
        saved_bytes: kept by the forward for the backward pass, parameters and logits left out.
        logits_bytes: what of it has the vocabulary as its width.
        peak_bytes: most that was alive at once, gradients and passing tensors included.
        forward_flops: by component, 2 a multiply-add.
        backward_flops: of the whole backward pass, recomputation included.
    """

    saved_bytes: int
    logits_bytes: int
    peak_bytes: int
    forward_flops: Mapping[str, int]
    backward_flops: int


class _Saved:
    """Storages that autograd keeps and that are no parameter."""

    def __init__(self, model: Any) -> None:
        self._parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self._vocabulary = model.get_output_embeddings().weight.shape[0]
        self._found: dict[int, tuple[int, bool, weakref.ref]] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """A hook of `saved_tensors_hooks`."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._parameters:
            is_logits = tensor.dim() > 0 and tensor.shape[-1] == self._vocabulary
            entry = (storage.nbytes(), is_logits, weakref.ref(storage))
            self._found[storage._cdata] = entry
        return tensor

    def kept_bytes(self) -> tuple[int, int]:
        """Of what is still there: activations, logits."""
        kept = [(size, is_logits) for size, is_logits, ref in self._found.values() if ref()]
        logits = sum(size for size, is_logits in kept if is_logits)
        return sum(size for size, _ in kept) - logits, logits


class Stage:
    """An attached plan on the meta device, made ready to be rehearsed.

    Args:
        attached: a plan on a model of the meta device; its parameters are replaced.
        widths: parameter -> width (fp32, bf16, fp16, nf4, fp4, int8).
        compute: dtype that quantized weights are computed in.
        autocast: whether forward passes run under bf16 autocast, as on a GPU.
    """

    def __init__(
        self,
        attached: AttachedPlan,
        widths: Mapping[str, str],
        compute: torch.dtype,
        autocast: bool,
    ):
        self.attached, self.autocast = attached, autocast
        self.model: Any = attached.model
        self.weightless = Weightless()
        self._take_memory_away({n: DTYPES.get(w, compute) for n, w in widths.items()})
        for name, width in widths.items():
            if width not in DTYPES:
                layer: Any = self.model.get_submodule(name.rpartition(".")[0])
                layer.forward = partial(_forward_dequantized, layer, width == "int8")
        self._set_modes()

    def _take_memory_away(self, dtypes: Mapping[str, torch.dtype]) -> None:
        known: dict[int, Tensor] = {}
        names = {id(p): name for name, p in self.model.named_parameters()}
        for module in self.model.modules():
            for tensors in (module._parameters, module._buffers):
                for key, tensor in tensors.items():
                    if tensor is None or not has_memory(tensor):
                        continue
                    if id(tensor) not in known:
                        like = self.weightless.like(tensor, dtypes.get(names.get(id(tensor), "")))
                        if isinstance(tensor, nn.Parameter):
                            like = nn.Parameter(like, requires_grad=tensor.requires_grad)
                        known[id(tensor)] = like
                    tensors[key] = known[id(tensor)]  # type: ignore[assignment]

    def _set_modes(self) -> None:
        """Train mode for components that change, as in a fit: dropout keeps masks."""
        self.model.eval()
        modules = dict(self.model.named_modules())
        for attachment in self.attached.attachments:
            for root in self.attached.components.roots[attachment.component]:
                if attachment.trainable and root in modules:
                    modules[root].train()

    def image_tokens(self, inputs: Mapping[str, Tensor]) -> int:
        """How many tokens the model makes of a picture's inputs."""
        with self.weightless, torch.no_grad():
            features = self.model.base_model.get_image_features(**inputs, return_dict=True)
        rows = features.pooler_output
        return sum(row.numel() // row.shape[-1] for row in rows)

    def rehearse(self, batch: Mapping[str, Tensor], accumulates: bool = False) -> Rehearsed:
        """One forward and backward pass; gradients of the step before are there until the backward begins.

        Args:
            batch: as the collate function makes them.
            accumulates: whether gradients are kept over several batches.
        """
        mode = self.weightless
        mode.begin(*self.model.parameters(), *self.model.buffers())
        saved = _Saved(self.model)
        with mode, self._parts():
            for parameter in self.attached.trainable().values():
                parameter.grad = torch.zeros_like(parameter)
            loss = self._loss(batch, saved)
            kept, forward = saved.kept_bytes(), dict(mode.flops)
            if not accumulates:
                self.model.zero_grad(set_to_none=True)
            mode.part = BACKWARD
            loss.backward()
            del loss
            self.model.zero_grad(set_to_none=True)
            mode.part = ""
        return Rehearsed(*kept, mode.peak_bytes, forward, mode.flops[BACKWARD])

    def _loss(self, batch: Mapping[str, Tensor], saved: _Saved) -> Tensor:
        cast = torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)
        with cast, torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
            return self.attached.with_penalties(*supervised_loss(self.model, dict(batch)))

    @contextmanager
    def _parts(self) -> Iterator[None]:
        """FLOPs of the forward go to the component whose module runs."""
        modules = dict(self.model.named_modules())
        with ExitStack() as stack:
            for component, roots in self.attached.components.roots.items():
                for root in roots:
                    if root in modules:
                        self._count_as(component, modules[root], stack)
            yield

    def _count_as(self, component: str, module: nn.Module, stack: ExitStack) -> None:
        outer: list[str] = []
        mode = self.weightless

        def enter(*_: Any) -> None:
            outer.append(mode.part)
            if mode.part != BACKWARD:
                mode.part = component

        def leave(*_: Any) -> None:
            mode.part = outer.pop()

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave).remove)


class _Dequantized(torch.autograd.Function):
    """What bitsandbytes' matmul does: the weight in full for the moment of a product, in both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, keeps: bool) -> Tensor:
        ctx.weight, ctx.kept = weight, x if keeps else None  # int8 keeps its input
        return F.linear(x, weight.clone(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] @ ctx.weight.clone(), None, None, None


def _forward_dequantized(layer: nn.Linear, keeps_input: bool, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        bias = None if layer.bias is None else layer.bias.to(layer.weight.dtype)
        out = _Dequantized.apply(x.to(layer.weight.dtype), layer.weight, bias, keeps_input)
        return out.to(x.dtype)  # type: ignore[union-attr]
