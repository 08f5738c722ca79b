"""How long every conversation is: encoded once, then remembered by content."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from vlmpeft.data.batches.dataset import EncodedDataset
from vlmpeft.data.batches.encode import IGNORE, Encoded
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.provenance import semantic_hash
from vlmpeft.runtime.records import write_json
from vlmpeft.runtime.shipped import cache_dir

_MANY_TURNS = 16  # scored turns of one conversation above which it is encoded once for all


class Measured(NamedTuple):
    """What is known of one encoded conversation, in tokens.

    Args:
        length: all of it, image tokens included.
        image_tokens: what its pictures take; 0 where the processor does not say which token that is.
        supervised: what is learnt from.
        longest_answer: end token included.
        end_ids: the tokens its answers end with.
    """

    length: int
    image_tokens: int
    supervised: int
    longest_answer: int
    end_ids: tuple[int, ...]


def measure(
    dataset: EncodedDataset, content: str, num_workers: int = 0
) -> list[Measured | UserError]:
    """One result an item, in order; from the cache if this content was measured before.

    Args:
        dataset: items and their encoder.
        content: hash of the conversations; with the encoder's settings it is the key of the cache.
        num_workers: processes that encode; 0 does it here and fills the data set's own cache.
    """
    key = semantic_hash(
        [content, [(item.id, item.turn) for item in dataset.items], dataset.encoder.identity()]
    )
    path = cache_dir() / "lengths" / f"{key}.json"
    if known := _read(path):
        return list(known)
    results = list(_measured(dataset, num_workers))
    good = [result for result in results if isinstance(result, Measured)]
    if len(good) == len(results):
        write_json(path, good)
    return results


def _read(path: Path) -> list[Measured] | None:
    try:
        return [
            Measured(length, images, supervised, longest, tuple(ends))
            for length, images, supervised, longest, ends in json.loads(path.read_text())
        ]
    except (OSError, ValueError, TypeError):
        return None


def _measured(dataset: EncodedDataset, num_workers: int) -> Iterator[Measured | UserError]:
    measuring = _Measuring(dataset, dict(_long_conversations(dataset)))
    if num_workers == 0:
        yield from (measuring[index] for index in range(len(dataset)))
        return
    yield from DataLoader(
        measuring, batch_size=None, collate_fn=_unchanged, num_workers=num_workers
    )


def _unchanged(result: Any) -> Any:
    """In place of torch's own conversion, which makes lists of tuples."""
    return result


class _Measuring(Dataset[Any]):
    """A data set of measurements, so that workers send numbers instead of pictures.

    Args:
        dataset: what is measured.
        known: position -> what is known without encoding that item by itself.
    """

    def __init__(self, dataset: EncodedDataset, known: dict[int, Measured]):
        self.dataset, self._known = dataset, known

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Measured | UserError:
        if index in self._known:
            return self._known[index]
        try:
            encoded = self.dataset[index][1]
        except UserError as error:
            return error
        return _of(encoded, self.dataset.encoder.image_token_id)


def _long_conversations(dataset: EncodedDataset) -> Iterator[tuple[int, Measured]]:
    """(position, measurement) of items that are many of one conversation, which is encoded once for all."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, item in enumerate(dataset.items):
        if item.turn is not None:
            members[id(item.conversation)].append(index)
    for indices in members.values():
        if len(indices) > _MANY_TURNS:
            yield from _from_whole(dataset, indices)


def _from_whole(dataset: EncodedDataset, indices: list[int]) -> Iterator[tuple[int, Measured]]:
    """The items of a conversation as its encoding has them, where they would be the same by themselves.

    They are if there are no pictures after them, which can change how many tokens others take, and a
    special token parts them from what follows, so that no token goes across.
    """
    conversation = dataset.items[indices[0]].conversation
    try:
        encoded, ends = dataset.encoder.encode_with_ends(conversation)
    except UserError:  # a template may fit what is said up to a turn, and not the whole
        return
    ids, special = encoded.input_ids.tolist(), dataset.encoder.end_token_ids
    images = list(accumulate((n == dataset.encoder.image_token_id for n in ids), initial=0))
    spans = dict(zip(conversation.assistant_turns, encoded.turns, strict=True))
    last = max((n for n, m in enumerate(conversation.messages) if m.images), default=-1)
    for index in indices:
        turn = dataset.items[index].turn
        assert turn is not None
        (start, stop), end = spans[turn], ends[turn]
        if turn >= last and not special.isdisjoint(ids[end - 1 : end + 1]):
            size = stop - start
            yield index, Measured(end, images[end], size, size, (ids[stop - 1],))


def _of(encoded: Encoded, image_token_id: int | None) -> Measured:
    spans = [end - start for start, end in encoded.turns]
    images = 0 if image_token_id is None else int((encoded.input_ids == image_token_id).sum())
    ends = sorted({int(encoded.input_ids[end - 1]) for _, end in encoded.turns})
    supervised = int((encoded.labels != IGNORE).sum())
    return Measured(len(encoded), images, supervised, max(spans), tuple(ends))
