"""A small twin of a model: as many layers, the same taps, tiny widths; and a picture with a question for it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor

PATCHES = 8  # a side of the twin's picture: divisible by the usual mergers
MAX_PARAMETERS = 200_000_000
_VOCABULARY, _FEEDFORWARD = 64, 32
_WORDS = [_VOCABULARY - 1] * 3  # special tokens get the first ids
_KINDS = ("mm_token_type_ids", "token_type_ids")  # which positions are a picture's
_POOLED = 4  # Gemma 3's picture: a quarter of a side's patches, as of 64 and 16
_OF_TEXT = ("out_hidden_size", "text_hidden_size")  # what a tower hands over
_HEADS = ("num_attention_heads", "num_heads", "attention_heads", "num_key_value_heads")
_IS_FEEDFORWARD = re.compile(r"(intermediate_size|ffn_dim|mlp_dim)$")
_IS_WIDTH = re.compile(r"(?<!head)(hidden_size|embed_dim|_dim|_width|d_model)$")
_IS_TOKEN = re.compile(r"_token(_ids?|_index)?$")


class NoTwin(RuntimeError):
    """This architecture's twin would not be small."""


def build_twin(config: Any) -> Any:
    """The twin of a config's model, with random weights in fp32 on the CPU.

    Raises:
        NoTwin: it would be too large.
    """
    from transformers import AutoModelForImageTextToText

    small = shrink_config(config)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForImageTextToText.from_config(small).parameters())
    if size > MAX_PARAMETERS:
        raise NoTwin(f"the shrunk {config.model_type} still has {size:,} parameters")
    return AutoModelForImageTextToText.from_config(small, dtype=torch.float32)


def shrink_config(config: Any) -> Any:
    """The same config with one attention head a layer, narrow feed-forwards, few words and a small picture.

    A width becomes that of one head, which keeps rotary sections valid, and keys that repeat a width (Qwen's
    `out_hidden_size`) follow it. Layer counts, tapped layers and whatever is not known here are kept.
    """
    found = config.to_dict()
    found.pop("quantization_config", None)
    parts = [found, *_nested(found)]
    widths: dict[int | str, int] = {}
    for part in sorted(parts, key=lambda part: part is not found.get("text_config")):
        if own := _own_width(part):
            new = _head_width(part, own)
            widths = {"text": new, part[own]: new} | widths
    tokens = {token: number for number, token in enumerate(sorted(_tokens(parts)))}
    for part in parts:
        _shrink_picture(part, found)
    for part in parts:
        _shrink_part(part, widths, tokens)
    return type(config).from_dict(found)


def _nested(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in found.items():
        if isinstance(value, dict) and key.endswith("_config"):
            yield value
            yield from _nested(value)


def _own_width(part: dict[str, Any]) -> str | None:
    """The key of the width that a part's heads divide (Qwen2-VL's tower: `embed_dim`, not `hidden_size`)."""
    has_heads = any(isinstance(part.get(key), int) for key in _HEADS)
    keys = (
        key for key in ("embed_dim", "d_model", "hidden_size") if isinstance(part.get(key), int)
    )
    return next(keys, None) if has_heads else None


def _head_width(part: dict[str, Any], own: str) -> int:
    heads = next(part[key] for key in _HEADS if isinstance(part.get(key), int))
    return part.get("head_dim") or part[own] // heads


def _tokens(parts: list[dict[str, Any]]) -> set[int]:
    values = (v for part in parts for k, v in part.items() if _IS_TOKEN.search(k))
    flat = (t for value in values for t in (value if isinstance(value, list) else [value]))
    return {token for token in flat if _is_number(token) and token >= 0}


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _shrink_picture(part: dict[str, Any], whole: dict[str, Any]) -> None:
    """PATCHES x PATCHES patches, and a tiler's resolutions to the same scale."""
    old, patch = _side(part.get("image_size")), _side(part.get("patch_size"))
    if not old or not patch:
        return
    new = PATCHES * patch
    part["image_size"] = [new, new] if isinstance(part["image_size"], (list, tuple)) else new
    if points := whole.get("image_grid_pinpoints"):
        whole["image_grid_pinpoints"] = [[new * side // old for side in point] for point in points]


def _side(size: Any) -> int:
    """Of a size that is a number or (InternVL) a pair; 0 if there is none."""
    if isinstance(size, (list, tuple)) and size:
        size = size[0]
    return size if _is_number(size) else 0


def _shrink_part(
    part: dict[str, Any], widths: dict[int | str, int], tokens: dict[int, int]
) -> None:
    own = _own_width(part)
    sizes = dict.fromkeys(_HEADS, 1) | dict.fromkeys(_OF_TEXT, widths.get("text", 0))
    sizes |= {"hidden_size": widths.get("text", 0), "mm_tokens_per_image": _POOLED}
    if own:
        sizes[own] = _head_width(part, own)
    for key, value in part.items():
        if _IS_TOKEN.search(key) and isinstance(value, list):
            part[key] = [tokens.get(token, token) for token in value]
        elif not _is_number(value):
            continue
        elif _IS_TOKEN.search(key):
            part[key] = tokens.get(value, value)
        elif key in sizes:
            part[key] = sizes[key]
        elif key.startswith("vocab_size"):
            part[key] = max(_VOCABULARY, len(tokens) + 1)
        elif _IS_FEEDFORWARD.search(key):
            part[key] = _FEEDFORWARD
        elif _IS_WIDTH.search(key):
            part[key] = widths.get(value, value)


def picture_batches(twin: Any) -> Iterator[dict[str, Tensor]]:
    """One noise picture among a few words, in each layout of pixels that the twin's `forward` could mean."""
    takes = inspect.signature(twin.forward).parameters
    encode = getattr(twin, "get_image_features", None) or twin.base_model.get_image_features
    of_features = inspect.signature(encode).parameters
    vision, token = twin.config.vision_config, twin.config.image_token_id
    for picture in _pictures(vision, takes):
        try:
            given = {key: value for key, value in picture.items() if key in of_features}
            with torch.no_grad():
                rows = sum(_rows(encode(**given)))
        except (TypeError, AttributeError, ValueError, RuntimeError, IndexError):
            continue  # another layout
        ids = torch.tensor([[*_WORDS, *[token] * rows, *_WORDS]])  # (1, T)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **picture}
        kinds = {key: (ids == token).long() for key in _KINDS if key in takes}
        yield batch | kinds


def _pictures(vision: Any, takes: Any) -> Iterator[dict[str, Tensor]]:
    if "image_grid_thw" in takes:  # Qwen: flat patches of all pictures, and each picture's grid
        values = 3 * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, PATCHES, PATCHES]])
        yield {"pixel_values": torch.randn(PATCHES**2, values), "image_grid_thw": grid}
        return
    side = _side(vision.image_size)
    pixels, size = torch.randn(1, 5, 3, side, side), torch.tensor([[side, side]])
    for values in (pixels[:, 0], pixels):  # one picture, or the tiles of one (LLaVA-NeXT)
        for sizes in ({}, {"image_sizes": size}):
            yield {"pixel_values": values} | sizes


def _rows(found: Any) -> Iterator[int]:
    """How many image tokens stand in what `get_image_features` returns: an output, a list, or a tensor."""
    found = getattr(found, "pooler_output", found)
    if isinstance(found, Tensor):
        yield found.numel() // found.shape[-1]
    else:
        for part in found:
            yield from _rows(part)
