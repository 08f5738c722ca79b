"""LoftQ: a LoRA that starts by making up for what quantization lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.deltas import dequantized

# relative distance below which two matrices are one, once in 4 bits: NF4's is 0.09 on normal weights and has been
# seen at 0.34 with outliers; of unrelated matrices it is 1.4
_ALIKE = 0.7


@torch.no_grad()
def start_from_residual(model: Any, targets: Sequence[str], files: Sequence[Path]) -> None:
    """Set A and B of attached LoRA layers so that (alpha / r) B A is the best rank-r part of W - Q(W).

    Li et al. 2023, arXiv:2310.08659, algorithm 1 with T = 1 and Q(W) left as it is; the best part is the singular
    value decomposition's (Eckart and Young).

    Args:
        model: with LoRA on 4- or 8-bit targets.
        targets: full names of the wrapped layers.
        files: the base's safetensors, with the weights as they were.

    Raises:
        UserError: a target's whole weight is not in the files.
    """
    from safetensors import safe_open

    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
        where = {key: file for file in opened for key in file.keys()}  # noqa: SIM118
        for name in targets:
            layer: Any = model.get_submodule(name)
            quantized = dequantized(layer.base_layer)
            whole = _whole_weight(name, quantized, where)
            _set_factors(layer, whole.to(quantized) - quantized)


def _set_factors(layer: Any, residual: Tensor) -> None:
    (adapter,) = layer.lora_A
    r, scale = layer.r[adapter], layer.scaling[adapter]
    u, s, v = torch.linalg.svd(residual, full_matrices=False)
    root = s[:r].sqrt()
    layer.lora_A[adapter].weight.copy_(root[:, None] * v[:r])
    layer.lora_B[adapter].weight.copy_(u[:, :r] * root / scale)


def _whole_weight(name: str, quantized: Tensor, where: Mapping[str, Any]) -> Tensor:
    """A target's weight before quantization.

    Checkpoints name modules otherwise than the loaded model does, so the values decide, and names that end alike come first.
    """
    leaf = name.split(".")
    ending = ".".join([*leaf[-4:], "weight"]) if len(leaf) > 4 else f"{leaf[-1]}.weight"
    shape = list(quantized.shape)
    for key in sorted(where, key=lambda key: not key.endswith(ending)):
        if list(where[key].get_slice(key).get_shape()) == shape:
            weight = where[key].get_tensor(key).to(quantized)
            if (weight - quantized).norm() < _ALIKE * weight.norm():
                return weight
    raise UserError(
        f"LoRA init=loftq: the whole weight of {name} is not in the base's files, so what quantization lost is not known; "
        "take init=default"
    )
