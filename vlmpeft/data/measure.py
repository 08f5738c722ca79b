"""How long every conversation is: encoded once, then remembered by content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from vlmpeft.data.dataset import EncodedDataset
from vlmpeft.data.encode import IGNORE, Encoded
from vlmpeft.errors import UserError
from vlmpeft.records import semantic_hash, write_json
from vlmpeft.shipped import cache_dir


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
    if num_workers == 0:
        yield from (_measure_item(dataset, index) for index in range(len(dataset)))
        return
    yield from DataLoader(
        _Measuring(dataset), batch_size=None, collate_fn=_unchanged, num_workers=num_workers
    )


def _unchanged(result: Any) -> Any:
    """In place of torch's own conversion, which makes lists of tuples."""
    return result


class _Measuring(Dataset[Any]):
    """A data set of measurements, so that workers send numbers instead of pictures."""

    def __init__(self, dataset: EncodedDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Measured | UserError:
        return _measure_item(self.dataset, index)


def _measure_item(dataset: EncodedDataset, index: int) -> Measured | UserError:
    try:
        encoded = dataset[index][1]
    except UserError as error:
        return error
    return _of(encoded, dataset.encoder.image_token_id)


def _of(encoded: Encoded, image_token_id: int | None) -> Measured:
    spans = [end - start for start, end in encoded.turns]
    images = 0 if image_token_id is None else int((encoded.input_ids == image_token_id).sum())
    ends = sorted({int(encoded.input_ids[end - 1]) for _, end in encoded.turns})
    supervised = int((encoded.labels != IGNORE).sum())
    return Measured(len(encoded), images, supervised, max(spans), tuple(ends))
