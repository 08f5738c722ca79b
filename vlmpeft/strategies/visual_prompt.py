"""Visual prompt tuning: trained tokens among a tower's patches, invisible outside its layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, Strategy

_CHILD = "visual_prompts"
# what a layer is given if its positions are not learned vectors, or its pictures are packed into one row
_ROTARY_OR_PACKED = (
    "position_embeddings",
    "rotary_pos_emb",
    "cu_seqlens",
    "position_ids",
    "freqs_ci",
)


class VisualPrompts(nn.Module):
    """(layers, n, D) trained vectors: one layer of them (shallow) or one for each layer (deep)."""

    def __init__(self, layers: int, n: int, d: int):
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(layers, n, d))


def insert_visual_prompts(
    strategy: Strategy, component: Component, n: int, is_deep: bool
) -> Attachment:
    """Let every layer of the tower see n more tokens.

    A layer gets its tokens appended and gives them off again, so that the tower's pooling and the hidden states that
    a projector taps are what they were.

    Raises:
        UserError: a tower with rotary positions or packed pictures, or one that has prompts already.
    """
    blocks = list(component.blocks().values())
    root = component.roots[0]
    tower = component.model.get_submodule(root)
    _check(component, tower, blocks)
    width = component.width(blocks[0])
    if width is None:
        raise UserError(
            f"PromptTuning on vision: {type(blocks[0]).__name__} has no normalisation to measure by; take LoRA"
        )
    with torch.device(next(blocks[0].parameters()).device):
        prompts = VisualPrompts(len(blocks) if is_deep else 1, n, width)
    tower.add_module(_CHILD, prompts)
    carried: dict[int, Tensor] = {}
    for number, block in enumerate(blocks):
        wrapped = (
            _deep(block, prompts, number) if is_deep else _shallow(block, prompts, carried, number)
        )
        block.forward = wrapped

    def detach() -> None:
        for block in blocks:
            del block.forward
        delattr(tower, _CHILD)

    return Attachment(
        component.name,
        strategy,
        targets=tuple(component.blocks()),
        trainable=(f"{root}.{_CHILD}.weight",),
        added=prompts.weight.numel(),
        detach=detach,
    )


def _deep(block: nn.Module, prompts: VisualPrompts, number: int) -> Callable[..., Any]:
    return _lengthened(block, lambda: prompts.weight[number], lambda _: None)


def _shallow(
    block: nn.Module, prompts: VisualPrompts, carried: dict[int, Tensor], number: int
) -> Callable[..., Any]:
    """What the layer before made of the prompts goes in; kept by layer, so that recomputation finds its own."""
    return _lengthened(
        block,
        lambda: prompts.weight[0] if number == 0 else carried[number - 1],
        lambda after: carried.__setitem__(number, after),
    )


def _lengthened(
    block: nn.Module, prompts: Callable[[], Tensor], keep: Callable[[Tensor], None]
) -> Callable[..., Any]:
    """The layer's forward with prompts behind its tokens, which are taken off its output."""
    forward = block.forward
    names = list(inspect.signature(forward).parameters)

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        hidden = given[names[0]]
        if hidden.dim() != 3:
            raise UserError(
                f"PromptTuning on vision: {type(block).__name__} gets tokens of shape {tuple(hidden.shape)}, not "
                "(B, N, D); take LoRA"
            )
        more = prompts().to(hidden)
        more = more.expand(len(hidden), -1, -1)
        length, n = hidden.shape[1], more.shape[1]
        given[names[0]] = torch.cat([hidden, more], 1)
        if isinstance(mask := given.get("attention_mask"), Tensor):
            given["attention_mask"] = _lengthened_mask(mask, n)
        try:
            output = forward(**given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # positions that its signature does not show
            raise UserError(
                f"PromptTuning on vision: {type(block).__name__} takes no more tokens than the picture has ({error}); take LoRA"
            ) from error
        whole = output[0] if isinstance(output, tuple) else output
        keep(whole[:, length:])
        short = whole[:, :length]
        return (short, *output[1:]) if isinstance(output, tuple) else short

    return wrapped


def _lengthened_mask(mask: Tensor, n: int) -> Tensor:
    """Everyone sees the prompts, and they see what the last token sees."""
    seen = True if mask.dtype == torch.bool else 1 if mask.dim() == 2 else 0
    mask = F.pad(mask, (0, n), value=seen)
    if mask.dim() < 3:  # (B, N)
        return mask
    return torch.cat([mask, mask[..., -1:, :].expand(*mask.shape[:-2], n, -1)], -2)


def _check(component: Component, tower: nn.Module, blocks: list[nn.Module]) -> None:
    if hasattr(tower, _CHILD):
        raise UserError("PromptTuning on vision stands there already; give one with a larger n")
    if not blocks:
        raise UserError(
            f"PromptTuning on vision: {type(tower).__name__} is not a stack of layers; take LoRA"
        )
    taken = set(inspect.signature(blocks[0].forward).parameters) & set(_ROTARY_OR_PACKED)
    if taken:
        raise UserError(
            f"PromptTuning on vision: {type(blocks[0]).__name__} takes {', '.join(sorted(taken))}: visual prompts need "
            "a tower with (B, N, D) tokens and learned positions; take LoRA"
        )
