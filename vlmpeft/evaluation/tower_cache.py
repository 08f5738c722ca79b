"""Tower features of each picture, computed once while a split is scored."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmpeft.data.batches.collate import join_pictures
from vlmpeft.data.batches.dataset import Item
from vlmpeft.data.batches.encode import Encoded
from vlmpeft.data.conversation import Image

Sample = tuple[Item, Encoded]
Pictures = tuple[Image, ...]


def pictures(item: Item) -> Pictures:
    """The pictures an item shows up to the scored turn."""
    assert item.turn is not None
    messages = item.conversation.messages[: item.turn]
    return tuple(image for message in messages for image in message.images)


class FeatureCache:
    """What tower and projector make of each item's pictures, passed to the model as `mm_encoder_outputs`.

    Args:
        model: an image-text-to-text model.
        limit_bytes: memory for features; the oldest are dropped.
    """

    def __init__(self, model: Any, limit_bytes: int = 2**30):
        self._encode = getattr(model.base_model, "get_image_features", None)
        self.limit_bytes = limit_bytes
        known = inspect.signature(model.forward).parameters
        self.image_inputs: set[str] = set()
        if self._encode is not None and "mm_encoder_outputs" in known:
            self.image_inputs = set(inspect.signature(self._encode).parameters) - {"kwargs"}
        self._features: dict[Pictures, list[Tensor]] = {}
        self._bytes = 0
        self._stacks = False  # whether the model takes one tensor (Gemma 3) or a list (Qwen-VL)

    def serves(self, samples: Sequence[Sample]) -> bool:
        """Whether the pictures of these samples can be encoded apart from their text."""
        return bool(self.image_inputs) and all(
            "pixel_values" in encoded.model_inputs for item, encoded in samples if pictures(item)
        )

    def inputs(self, samples: Sequence[Sample], device: torch.device) -> dict[str, Any] | None:
        """`mm_encoder_outputs` for these samples in order, {} without pictures; None if it cannot be done."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        shown = [(pictures(item), encoded) for item, encoded in samples]
        unknown = {p: e for p, e in shown if p and p not in self._features}
        if unknown and not self._add(unknown, device):
            return None
        features = [tensor for p, _ in shown if p for tensor in self._features[p]]
        self._shrink()
        if not features:
            return {}
        given: Any = torch.stack(features) if self._stacks else features
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=given)}}

    def _add(self, unknown: dict[Pictures, Encoded], device: torch.device) -> bool:
        """Encode pictures; False if the model gives something else than one tensor a picture."""
        assert self._encode is not None
        keys = {key for e in unknown.values() for key in e.model_inputs} & self.image_inputs
        values = {key: join_pictures(key, list(unknown.values())).to(device) for key in keys}
        output = self._encode(**values, return_dict=True)
        features = output.pooler_output
        plain = set(output) <= {"pooler_output", "last_hidden_state", "hidden_states", "attentions"}
        if not plain or features is None or len(features) != sum(map(len, unknown)):
            self.image_inputs = set()
            return False
        self._stacks = isinstance(features, Tensor)
        waiting = list(features)
        for key in unknown:
            self._features[key] = [waiting.pop(0) for _ in key]
            self._bytes += sum(tensor.nbytes for tensor in self._features[key])
        return True

    def _shrink(self) -> None:
        while self._bytes > self.limit_bytes and len(self._features) > 1:
            oldest = self._features.pop(next(iter(self._features)))
            self._bytes -= sum(tensor.nbytes for tensor in oldest)
