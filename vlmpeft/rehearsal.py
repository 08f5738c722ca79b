"""A training step rehearsed on tensors that have shapes and no memory: what it would keep and compute."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlmpeft.base import DTYPES
from vlmpeft.loss import supervised_loss
from vlmpeft.plan import AttachedPlan

aten: Any = torch.ops.aten
_MOST_REAL = 2**22  # elements of a tensor that is made up
_MADE_UP = (
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
)
_GROUPED = aten._grouped_mm.default
_FLOPS: dict[
    Any, Callable[..., int]
] = {  # what torch's counter lacks: the CPU's attention, experts
    aten._grouped_mm: lambda a, b, *_, **__: 2 * a.shape[-2] * a.shape[-1] * b.shape[-1],
    aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: flop_counter.sdpa_flop_count(q.shape, k.shape, v.shape)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *_, **__: flop_counter.sdpa_backward_flop_count(
            g.shape, q.shape, k.shape, v.shape
        )
    ),
}


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


class Weightless(TorchDispatchMode):
    """Runs what depends on weights without memory (torch's fake tensors), and what depends on inputs alone for real.

    A meta device is not enough: models look at token ids, masks, image grids and empty pictures while they run.
    Counts what is alive by storage, and FLOPs by `part`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live_bytes, self.peak_bytes, self.part = 0, 0, ""
        self.flops: Counter[str] = Counter()
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(isinstance(t, FakeTensor) for t in tensors) or (not tensors and _is_big(args)):
            if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
                args = (args[0], [i for index in args[1] for i in _as_integers(index)], *args[2:])
            with self.fake:
                out = _grouped(func, args, kwargs) if func is _GROUPED else func(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
            if func.overloadpacket.__name__ in _MADE_UP and out.numel() > _MOST_REAL:
                out = self.like(out)  # such as the mask that attention makes in every layer
        self._count_flops(func, args, kwargs, out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._track(leaf.untyped_storage())
        return out

    def like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of the same shape without memory."""
        with self.fake:
            return torch.empty(tensor.shape, dtype=dtype or tensor.dtype)

    def ignore(self, tensors: Iterator[Tensor]) -> None:
        """Do not count these storages."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage)

    def _track(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.live_bytes -= size

    def _count_flops(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        packet = func.overloadpacket
        if formula := _FLOPS.get(packet):
            self.flops[self.part] += formula(*args, **kwargs)
        elif formula := flop_counter.flop_registry.get(packet):
            self.flops[self.part] += formula(*args, **kwargs, out_val=out)


def _grouped(func: Any, args: tuple, kwargs: dict) -> Tensor:
    """The experts' product takes bf16 alone where there are no values, and fp32 as well where there are."""
    out = func(args[0].bfloat16(), args[1].bfloat16(), *args[2:], **kwargs)
    return out.to(args[0].dtype)


def _as_integers(index: Any) -> tuple[Any, ...]:
    """A mask as indices: how many it picks is only known of a real one."""
    is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
    return (
        index.nonzero(as_tuple=True) if is_mask and not isinstance(index, FakeTensor) else (index,)
    )


def _is_big(args: tuple) -> bool:
    size = next((a for a in args if isinstance(a, (list, tuple))), ())
    return all(isinstance(n, int) for n in size) and prod(size) > _MOST_REAL


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
        self.attached, self.model, self.autocast = attached, attached.model, autocast
        self.weightless = Weightless()
        self._take_memory_away({n: DTYPES.get(w, compute) for n, w in widths.items()})
        for name, width in widths.items():
            if width not in DTYPES:
                layer = self.model.get_submodule(name.rpartition(".")[0])
                layer.forward = partial(_forward_dequantized, layer, width == "int8")
        self._set_modes()

    def _take_memory_away(self, dtypes: Mapping[str, torch.dtype]) -> None:
        known: dict[int, Tensor] = {}
        names = {id(p): name for name, p in self.model.named_parameters()}
        for module in self.model.modules():
            for tensors in (module._parameters, module._buffers):
                for key, tensor in tensors.items():
                    if tensor is None or isinstance(tensor, FakeTensor):
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
        mode.live_bytes, mode.peak_bytes = 0, 0
        mode.flops.clear()
        mode.ignore(iter([*self.model.parameters(), *self.model.buffers()]))
        parameters = {p.untyped_storage()._cdata for p in self.model.parameters()}
        saved: dict[int, tuple[int, bool, weakref.ref]] = {}
        width = self.model.get_output_embeddings().weight.shape[0]

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            is_logits = tensor.dim() > 0 and tensor.shape[-1] == width
            entry = (storage.nbytes(), is_logits, weakref.ref(storage))
            if storage._cdata not in parameters:
                saved[storage._cdata] = entry
            return tensor

        with mode, self._parts():
            for parameter in self.attached.trainable().values():
                parameter.grad = torch.zeros_like(parameter)
            cast = torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)
            with cast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss, _ = supervised_loss(self.model, dict(batch))
                for attachment in self.attached.attachments:
                    if attachment.penalty:
                        loss = loss + attachment.penalty()
            kept = [(size, is_logits) for size, is_logits, ref in saved.values() if ref()]
            forward = dict(mode.flops)
            if not accumulates:
                self.model.zero_grad(set_to_none=True)
            mode.part = "backward"
            loss.backward()
            del loss
            self.model.zero_grad(set_to_none=True)
            mode.part = ""
        return Rehearsed(
            sum(size for size, is_logits in kept if not is_logits),
            sum(size for size, is_logits in kept if is_logits),
            mode.peak_bytes,
            forward,
            mode.flops["backward"],
        )

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
            if mode.part != "backward":
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
