"""Items shown the wrong picture, or none: does the model look at all?"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from vlmpeft.data.batches.dataset import Item
from vlmpeft.data.conversation import Image
from vlmpeft.data.digests import Digests
from vlmpeft.runtime.errors import UserError

Pictures = tuple[bytes, ...]  # their digests


def blank(items: Sequence[Item]) -> list[Item]:
    """Every picture replaced by a grey one of its size."""
    return [
        _with_images(item, [replace(image, blank=True) for image in item.conversation.images])
        for item in items
    ]


def shuffled(items: Sequence[Item]) -> list[Item]:
    """Every picture replaced by another item's, always the same for the same picture, whatever it is called.

    Raises:
        UserError: all items show the same picture.
    """
    digests = Digests()
    shown = [
        tuple(digests.image(image) or image.source.encode() for image in item.conversation.images)
        for item in items
    ]
    known = {
        pictures: item.conversation.images for pictures, item in zip(shown, items, strict=True)
    }
    other = _derangement(list(known))
    return [
        _with_images(item, known[other[pictures]])
        for item, pictures in zip(items, shown, strict=True)
    ]


def _derangement(shown: Sequence[Pictures]) -> dict[Pictures, Pictures]:
    """Pictures -> other pictures, as many of them: the next in a shuffled ring."""
    rings: dict[int, list[Pictures]] = defaultdict(list)
    for pictures in shown:
        rings[len(pictures)].append(pictures)
    other: dict[Pictures, Pictures] = {}
    for number, ring in sorted(rings.items()):
        if number and len(ring) == 1:
            raise UserError(
                f"the control 'shuffled' needs two items with {number} image(s), but different ones"
            )
        random.Random(0).shuffle(ring)
        for place, pictures in enumerate(ring):
            other[pictures] = _stranger(pictures, [*ring[place + 1 :], *ring[:place]])
    return other


def _stranger(pictures: Pictures, ring: Sequence[Pictures]) -> Pictures:
    """The next that has none of these pictures; where there is none, the next."""
    apart = (others for others in ring if not set(others) & set(pictures))
    return next(apart, ring[0] if ring else pictures)


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
