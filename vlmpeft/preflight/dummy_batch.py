"""A blank conversation of a given length about one picture, for a base that may have no weights and no processor."""

from __future__ import annotations

import base64
import inspect
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from PIL import Image as Pillow
from torch import Tensor

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.encode import IGNORE, Encoded, Encoder
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.runtime.errors import UserError

_OPTIONAL = ("vision_feature_layer", "vision_feature_select_strategy", "image_sizes")
NO_LIMIT_PIXELS = 1024 * 1024  # of the picture, where data.max_pixels is null


@dataclass(frozen=True)
class Blank:
    """One conversation up to its answer.

    Args:
        conversation: with every image token.
        start: where the answer begins.
        image_tokens: how many tokens stand for the picture.
        filler: a text token.
        pad: the token that batches are padded with.
    """

    conversation: Encoded
    start: int
    image_tokens: int
    filler: int
    pad: int

    def batch(self, size: int, tokens: int, answer_tokens: int) -> dict[str, Tensor]:
        """`size` conversations of `tokens` tokens, of which the last `answer_tokens` are supervised.

        The last one is a token shorter, so that there is padding: without it models drop the attention mask.
        """
        shorter = max(self.start + 1, tokens - 1)
        lengths = [tokens] * max(1, size - 1) + [shorter] * (size > 1)
        return collate([self._sample(length, answer_tokens) for length in lengths], self.pad)

    def _sample(self, length: int, answer_tokens: int) -> Encoded:
        answer = [self.filler] * (length - self.start)
        encoded = self.conversation.with_answer(self.start, self.start, answer)
        is_learnt = torch.arange(length) >= length - answer_tokens
        labels = torch.where(is_learnt, encoded.input_ids, IGNORE)
        return replace(encoded, labels=labels)


def blank_conversation(
    spec: BaseSpec,
    model: Any,
    count_tokens: Callable[[dict[str, Tensor]], int],
    max_pixels: int | None,
    chat_template: str | None = None,
) -> Blank:
    """By the base's processor, or from its config where there is none.

    Args:
        spec: the base.
        model: on the meta device.
        count_tokens: how many image tokens the model makes of a picture's inputs.
        max_pixels: of the picture, a grey square.
        chat_template: instead of the processor's.

    Raises:
        UserError: no processor, and no config from which a picture's inputs follow.
    """
    try:
        processor = load_processor(spec)
    except UserError:
        return _from_config(model, count_tokens, max_pixels)
    return _from_processor(Encoder(processor, chat_template, max_pixels), max_pixels)


def _from_processor(encoder: Encoder, max_pixels: int | None) -> Blank:
    side, stream = math.isqrt(max_pixels or NO_LIMIT_PIXELS), io.BytesIO()
    Pillow.new("RGB", (side, side), (128, 128, 128)).save(stream, "PNG")
    picture = Image("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode())
    messages = (Message("user", (picture, "a")), Message("assistant", ("a",)))
    shown = encoder.encode(Conversation("blank", messages, "a blank conversation"))
    start, tokenizer = shown.turns[0][0], encoder.processor.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    prompt = shown.input_ids[:start].tolist()
    count = prompt.count(encoder.image_token_id) or _longest_run(prompt)
    return Blank(shown, start, count, int(shown.input_ids[start]), pad)


def _longest_run(ids: list[int]) -> int:
    """How often a token is repeated: a picture's, where the processor does not say which it is.

    >>> _longest_run([5, 7, 7, 7, 2])
    3
    """
    return max(len(list(group)) for _, group in groupby(ids))


def _from_config(
    model: Any, count_tokens: Callable[[dict[str, Tensor]], int], max_pixels: int | None
) -> Blank:
    config, takes = model.config, inspect.signature(model.forward).parameters
    inputs = _picture_inputs(model, max_pixels)
    image_id = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if inputs is None or image_id is None:
        raise UserError(
            f"a {config.model_type} base needs its processor's files beside config.json, to know what a picture "
            "becomes; put preprocessor_config.json, processor_config.json and the tokenizer's files there"
        )
    count = count_tokens(inputs)
    ids = torch.tensor([1, *[image_id] * count, 1, 1])  # the last begins the answer
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in takes:
            inputs[key] = (ids == image_id).long().unsqueeze(0)
    encoded = Encoded(ids, torch.full_like(ids, IGNORE), (), inputs)
    return Blank(encoded, len(ids) - 1, count, 1, 0)


def _picture_inputs(model: Any, max_pixels: int | None) -> dict[str, Tensor] | None:
    """One picture as the towers of LLaVA's and Qwen-VL's kin take it; None of others."""
    vision: Any = getattr(model.config, "vision_config", None)
    encode = getattr(model.base_model, "get_image_features", None)
    known = inspect.signature(encode).parameters if encode else {}
    takes = {n for n, p in known.items() if n not in _OPTIONAL or p.default is p.empty} - {"kwargs"}
    if takes == {"pixel_values", "image_grid_thw"} and hasattr(vision, "spatial_merge_size"):
        cell = vision.patch_size * vision.spatial_merge_size
        cells = max(1, math.isqrt(max_pixels or NO_LIMIT_PIXELS) // cell)
        patches = vision.spatial_merge_size * cells
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, patches, patches]])
        return {"pixel_values": torch.ones(patches**2, width), "image_grid_thw": grid}
    side = getattr(vision, "image_size", None)
    if takes == {"pixel_values"} and side:
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        return {"pixel_values": torch.ones(1, 3, height, width)}
    return None
