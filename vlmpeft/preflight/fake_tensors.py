"""Tensors that have shapes and no memory, counted while models run on them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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

    def begin(self, *uncounted: Tensor) -> None:
        """Count from zero; of these storages nothing."""
        self.live_bytes, self.peak_bytes = 0, 0
        self.flops.clear()
        for tensor in uncounted:
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


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is a real one (or a meta one)."""
    return not isinstance(tensor, FakeTensor)
