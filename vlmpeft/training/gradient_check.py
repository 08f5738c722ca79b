"""Before the first step: does every trainable tensor get a gradient, and nothing else?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.strategies.plan import AttachedPlan

_NUDGE = 1e-3  # standard deviation of what zero-initialised tensors get: behind a zero there is no gradient


@dataclass(frozen=True)
class SelfTest:
    """What one batch said.

    Args:
        unreachable: trainables the loss does not depend on, such as LLaVA's last tower layer.
        problems: what is wrong, by parameter.
    """

    unreachable: tuple[str, ...]
    problems: tuple[str, ...]


def gradient_self_test(attached: AttachedPlan, batch: Mapping[str, Any]) -> SelfTest:
    """Compute one batch's gradients twice, with a no-grad eval forward in between; everything is restored bitwise.

    Zero-initialised trainables are nudged first: of a LoRA, B is zero and A's gradient would be as well. The
    second time must give the same values (bitsandbytes 0.50 repacks 4-bit weights at such a forward on some CPUs, and
    every gradient below is wrong from then on). Dropout is off.
    """
    model, trainable = attached.model, attached.trainable()
    with _nudged(trainable):
        first = _gradients(model, batch)
        with torch.no_grad():
            supervised_loss(model, dict(batch))
        second = _gradients(model, batch)
    unreachable = tuple(sorted(trainable.keys() - first.keys()))
    return SelfTest(unreachable, tuple(_problems(trainable, first, second)))


def _problems(
    trainable: Mapping[str, nn.Parameter], first: dict[str, Tensor], second: dict[str, Tensor]
) -> Iterator[str]:
    if not first:
        yield "no trainable tensor gets a gradient: the loss depends on none of them"
    for name, gradient in first.items():
        if name not in trainable:
            yield f"{name} is frozen and gets a gradient"
        elif not torch.isfinite(gradient).all():
            yield f"{name} gets a gradient that is not finite"
        elif not gradient.any():
            yield f"{name} gets a gradient of zeros"
        elif name not in second or not torch.allclose(gradient, second[name], rtol=1e-3, atol=1e-6):
            yield f"{name} gets another gradient after an evaluation"


def _gradients(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name -> gradient of the mean loss, of every parameter that got one."""
    model.zero_grad(set_to_none=True)
    loss, tokens = supervised_loss(model, dict(batch))
    if loss.requires_grad:  # not if nothing that is trained is on the way to it
        (loss / tokens).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@contextmanager
def _nudged(trainable: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Trainables that are all zero get a little noise; afterwards every bit is as before."""
    zeros = [parameter for parameter in trainable.values() if not parameter.any()]
    kept = [parameter.detach().clone() for parameter in zeros]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in zeros:
                noise = _NUDGE * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(zeros, kept, strict=True):
                parameter.copy_(value)
