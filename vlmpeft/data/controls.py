"""Items shown the wrong picture, or none: does the model look at all?"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from vlmpeft.data.conversation import Image
from vlmpeft.data.dataset import Item
from vlmpeft.errors import UserError


def blank(items: Sequence[Item]) -> list[Item]:
    """Every picture replaced by a grey one of its size."""
    return [
        _with_images(item, [replace(image, blank=True) for image in item.conversation.images])
        for item in items
    ]


def shuffled(items: Sequence[Item]) -> list[Item]:
    """Every picture replaced by another item's, always the same for the same picture.

    Raises:
        UserError: all items show the same picture.
    """
    other = _derangement([item.conversation.images for item in items])
    return [_with_images(item, other[item.conversation.images]) for item in items]


def _derangement(shown: Sequence[tuple[Image, ...]]) -> dict[tuple[Image, ...], tuple[Image, ...]]:
    """Pictures -> other pictures, as many of them: the next in a shuffled ring."""
    rings: dict[int, list[tuple[Image, ...]]] = defaultdict(list)
    for images in dict.fromkeys(shown):
        rings[len(images)].append(images)
    other: dict[tuple[Image, ...], tuple[Image, ...]] = {}
    for number, ring in sorted(rings.items()):
        if number and len(ring) == 1:
            raise UserError(
                f"the control 'shuffled' needs two items with {number} image(s), but different ones"
            )
        random.Random(0).shuffle(ring)
        other |= dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return other


def _with_images(item: Item, images: Sequence[Image]) -> Item:
    waiting = list(images)
    messages = tuple(
        replace(
            message,
            parts=tuple(waiting.pop(0) if isinstance(p, Image) else p for p in message.parts),
        )
        for message in item.conversation.messages
    )
    return replace(item, conversation=replace(item.conversation, messages=messages))


CONTROLS: dict[str, Callable[[Sequence[Item]], list[Item]]] = {"blank": blank, "shuffled": shuffled}
