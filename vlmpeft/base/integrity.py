"""Whether a model in memory is still the base that was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

State = Mapping[str, str]


def model_state(model: nn.Module) -> State:
    """What a model is made of, by name: equal before a plan is attached and after it is detached.

    Of a module: its class and how many hooks it has beside those that transformers itself puts there at a first forward. Of a tensor: dtype, shape and the sum of its bits as integers, which any change of
    one weight changes.
    """
    state = {}
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        ours = [hook for hook in hooks if not _module_of(hook).startswith("transformers.")]
        state[f"module {name}"] = f"{type(module).__name__} with {len(ours)} hooks"
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        state[name] = f"{tensor.dtype} {tuple(tensor.shape)} {_bit_sum(tensor)}"
    return state


def changes(before: State, after: State) -> list[str]:
    """`name: before -> after` of everything that differs."""
    names = [n for n in dict.fromkeys((*before, *after)) if before.get(n) != after.get(n)]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


def _module_of(hook: Any) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))


def _bit_sum(tensor: Tensor) -> int:
    sizes: dict[int, Any] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().view(-1) if tensor.ndim else tensor.detach().view(1)
    if bits.dtype == torch.bool:
        bits = bits.to(torch.uint8)
    return int(bits.view(sizes[bits.element_size()]).sum(dtype=torch.int64))
