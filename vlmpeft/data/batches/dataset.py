"""Conversations as torch data sets: encoded on demand, remembered while memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from vlmpeft.data.batches.encode import Encoded, Encoder
from vlmpeft.data.conversation import Conversation


@dataclass(frozen=True)
class Item:
    """One thing to train on or to score: a conversation, and for scoring which of its answers."""

    id: str
    conversation: Conversation
    turn: int | None = None

    @property
    def expected(self) -> str:
        """The reference answer of the scored turn."""
        assert self.turn is not None
        return self.conversation.messages[self.turn].text

    @property
    def references(self) -> tuple[str, ...]:
        """Every accepted answer of the scored turn, the one that is learnt first; ten annotators stay ten."""
        assert self.turn is not None
        message = self.conversation.messages[self.turn]
        others = list(message.references)
        if message.text in others:
            others.remove(message.text)  # once: it counts how many said it
        return (message.text, *others)

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible answers of a multiple-choice question."""
        choices = self.conversation.extra.get("choices")
        return tuple(map(str, choices)) if isinstance(choices, list) else ()

    @property
    def prompt(self) -> str:
        """The text of the message before the scored turn."""
        assert self.turn is not None
        return self.conversation.messages[self.turn - 1].text


def scored_items(conversations: Sequence[Conversation]) -> list[Item]:
    """One item for every assistant turn; the turns before it are given as they stand in the data."""
    items = []
    for conversation in conversations:
        turns = conversation.assistant_turns
        for number, turn in enumerate(turns):
            suffix = f"#{number}" if len(turns) > 1 else ""
            items.append(Item(conversation.id + suffix, conversation, turn))
    return items


class EncodedDataset(Dataset[tuple[Item, Encoded]]):
    """Items encoded when asked for; the first `cache_bytes` of them are kept.

    Args:
        items: what to encode.
        encoder: how.
        cache_bytes: memory for encoded items; small sets are decoded once, large ones again each epoch.
    """

    def __init__(self, items: Sequence[Item], encoder: Encoder, cache_bytes: int = 0):
        self.items, self.encoder = list(items), encoder
        self._room = cache_bytes
        self._cache: dict[int, Encoded] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, Encoded]:
        item = self.items[index]
        if index in self._cache:
            return item, self._cache[index]
        encoded = self.encoder.encode(item.conversation, item.turn)
        if encoded.num_bytes <= self._room:
            self._room -= encoded.num_bytes
            self._cache[index] = encoded
        return item, encoded

    def subset(self, kept: Sequence[int]) -> EncodedDataset:
        """The items at these positions, with what is encoded of them already."""
        if len(kept) == len(self):
            return self
        subset = EncodedDataset([self.items[i] for i in kept], self.encoder, self._room)
        subset._cache = {
            new: self._cache[old] for new, old in enumerate(kept) if old in self._cache
        }
        return subset
