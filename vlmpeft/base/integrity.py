"""Whether a model in memory is still the base that was loaded."""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def model_digest(model: nn.Module) -> str:
    """A hash of every module, hook and tensor of a model: equal before a plan is attached and after it is detached.

    Of a tensor: shape, dtype and the sum of its bits as integers. Any change of one weight changes it.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        digest.update(f"{name} {type(module).__name__} {hooks}\n".encode())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_bit_sum(tensor)}\n".encode())
    return digest.hexdigest()[:16]


def _bit_sum(tensor: Tensor) -> int:
    sizes: dict[int, Any] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().view(-1) if tensor.ndim else tensor.detach().view(1)
    if bits.dtype == torch.bool:
        bits = bits.to(torch.uint8)
    return int(bits.view(sizes[bits.element_size()]).sum(dtype=torch.int64))
