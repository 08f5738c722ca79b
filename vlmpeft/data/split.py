"""Splitting one data set by itself: what belongs together stays on one side."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from vlmpeft.data.conversation import Conversation
from vlmpeft.data.digests import Digests
from vlmpeft.data.formats.values import names
from vlmpeft.runtime.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Split:
    """Which conversation went where.

    Args:
        by: image, or the column whose values were kept together (with every image).
        shares: of each split taken out of train.
        groups: number of groups that were dealt out.
        parts: split -> positions in the data set.
    """

    by: str
    shares: dict[str, float]
    groups: int
    parts: dict[str, list[int]]

    def to_dict(self) -> dict[str, Any]:
        """What a record keeps."""
        return {"by": self.by, "shares": self.shares, "groups": self.groups}


def split_conversations(
    conversations: Sequence[Conversation], shares: dict[str, float], by: str, digests: Digests
) -> Split:
    """Deal whole groups out to splits, train keeping the rest; the same data always splits the same way.

    Conversations that share an image (by content) or, if `by` is a column, its value are one group. Groups are
    taken in the order of their hash, so that data added later moves few of those that were there; one that is
    larger than what a split still needs is left to the next.

    Args:
        conversations: of the train split as it is given.
        shares: split -> share of the conversations, 0 to 1.
        by: "image", or the name of a column.
        digests: of the images.

    Raises:
        UserError: shares that leave nothing, a column that is not there, fewer groups than splits.
    """
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise UserError(f"data splits of {shares}: each share is above 0, all together below 1")
    groups = _groups(conversations, by, digests)
    if len(groups) <= len(shares):
        raise UserError(
            f"data.{next(iter(shares))}: {len(groups)} group(s) by {by} cannot be dealt out to "
            f"{len(shares) + 1} splits; give a file, or another data.split_by"
        )
    parts, waiting = {}, groups
    for place, (name, share) in enumerate(shares.items(), 1):
        most = len(waiting) - (len(shares) + 1 - place)  # one group is left for each split to come
        taken = _take(waiting, share * len(conversations), most)
        parts[name] = sorted(index for number in taken for index in waiting[number])
        waiting = [group for number, group in enumerate(waiting) if number not in taken]
    parts["train"] = sorted(index for group in waiting for index in group)
    return Split(by, shares, len(groups), parts)


def _take(groups: Sequence[Sequence[int]], wanted: float, most: int) -> set[int]:
    """Positions of groups for a split: in their order those that fit, then the smallest if that is nearer."""
    taken: set[int] = set()
    missing = wanted
    for number, group in enumerate(groups):
        if len(taken) < most and len(group) <= missing:
            taken.add(number)
            missing -= len(group)
    others = [number for number in range(len(groups)) if number not in taken]
    smallest = min(others, key=lambda number: len(groups[number]))
    is_nearer = len(taken) < most and len(groups[smallest]) < 2 * missing
    return taken | {smallest} if is_nearer or not taken else taken


def _groups(conversations: Sequence[Conversation], by: str, digests: Digests) -> list[list[int]]:
    """Positions that belong together, in the order of the groups' hashes."""
    parent = list(range(len(conversations)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[Hashable, int] = {}
    for index, conversation in enumerate(conversations):
        for key in _keys(conversation, by, digests):
            parent[root(index)] = root(first.setdefault(key, index))
    groups = defaultdict(list)
    for index in range(len(conversations)):
        groups[root(index)].append(index)
    return sorted(
        groups.values(),
        key=lambda group: min(
            hashlib.sha256(digests.conversation(conversations[i])).digest() for i in group
        ),
    )


def _keys(conversation: Conversation, by: str, digests: Digests) -> list[Hashable]:
    """What ties a conversation to others; one without a picture is tied by its text alone."""
    keys: list[Hashable] = [*digests.images(conversation)] or [digests.conversation(conversation)]
    if by != "image":
        if by not in conversation.extra:
            raise UserError(
                f"{conversation.place}: data.split_by: there is no column {by!r}."
                f"{did_you_mean(by, names(conversation.extra))} (A null or a long text is none either.)"
            )
        keys.append((by, str(conversation.extra[by])))
    return keys
