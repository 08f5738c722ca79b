"""Finding pictures that are the same or nearly so: re-encoded, resized, but not otherwise changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 16
NUM_BITS = SIDE * SIDE
# neighbours closer than this count as level, or noise alone would decide the bits of a plain area
STEP_LEVELS = 6


@dataclass(frozen=True)
class Signature:
    """What is compared of a picture.

    Args:
        bits: NUM_BITS bits of difference hash: where grey rises from one cell to the next.
        thumbnail: SIDE x SIDE cells of RGB, in reading order.
    """

    bits: int
    thumbnail: bytes


def signature(picture: Image.Image) -> Signature:
    """The signature of an upright picture of any size.

    The difference hash is that of Neal Krawetz, "Kind of Like That" (hackerfactor.com, 2013), on
    more cells and with a least difference of STEP_LEVELS.
    """
    rgb = picture.convert("RGB")
    # triangle filter: cells that overlap move less than boxes do when a picture is resampled
    smooth = Image.Resampling.BILINEAR
    grey = np.asarray(rgb.convert("L").resize((SIDE + 1, SIDE), smooth), dtype=np.int16)
    rises = grey[:, 1:] - grey[:, :-1] > STEP_LEVELS  # (SIDE, SIDE)
    thumbnail = rgb.resize((SIDE, SIDE), smooth).tobytes()
    return Signature(int.from_bytes(np.packbits(rises).tobytes(), "big"), thumbnail)


def near_duplicates(
    signatures: Sequence[Signature], max_bits: int = 10, max_level: int = 12
) -> list[tuple[int, ...]]:
    """Groups of two and more nearly equal pictures: indices in order, groups by their first.

    A pair is nearly equal if both limits hold; a group is what a chain of such pairs connects.
    The limits were chosen on workbench scenes and on 1/f noise of 512 pixels, saved as JPEG of
    quality 60 or resized to half. From 128 pixels a side on, at most 10 bits and 9 levels
    change; at the scenes' own 64 pixels the levels of a JPEG change by up to 33 (a half by up to
    21), so that pictures this small need max_level=40. Another colour or shape of one part in
    a scene leaves as few as 0 bits but moves a cell by 66 levels or more.

    Args:
        signatures: of the pictures.
        max_bits: most bits of the hashes that differ.
        max_level: most levels, of 255, by which any channel of any cell differs.
    """
    same: defaultdict[Signature, list[int]] = defaultdict(list)
    for index, one in enumerate(signatures):
        same[one].append(index)
    labels = _connect(list(same), max_bits, max_level) if same else np.arange(0)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for label, indices in zip(labels.tolist(), same.values(), strict=True):
        groups[label] += indices
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def _connect(signatures: Sequence[Signature], max_bits: int, max_level: int) -> np.ndarray:
    """(N,) labels, equal where a chain of nearly equal pairs connects two pictures."""
    hashes = _stack(one.bits.to_bytes(NUM_BITS // 8, "big") for one in signatures)  # (N, 32)
    cells = _stack(one.thumbnail for one in signatures).astype(np.int16)  # (N, 768)
    corners = cells[:, _widest(cells)]  # (N, 24)
    labels = np.arange(len(signatures))
    for bucket in _buckets(hashes, max_bits + 1):
        members = bucket[np.argsort(corners[bucket, 0], kind="stable")]
        ends = np.searchsorted(corners[members, 0], corners[members, 0] + max_level, "right")
        for place, end in enumerate(ends.tolist()):
            one, others = members[place], members[place + 1 : end]
            # without this, thousands of frames of one still camera would all be compared in full
            others = others[labels[others] != labels[one]]
            for values in (corners, cells):
                others = others[(np.abs(values[others] - values[one]) <= max_level).all(axis=1)]
            others = others[np.bitwise_count(hashes[others] ^ hashes[one]).sum(axis=1) <= max_bits]
            if others.size:
                labels[np.isin(labels, labels[others])] = labels[one]
    return labels


def _stack(rows: Iterable[bytes]) -> np.ndarray:
    return np.stack([np.frombuffer(row, dtype=np.uint8) for row in rows])


def _widest(cells: np.ndarray, count: int = 24) -> np.ndarray:
    """The channels of cells that tell pictures apart best, to be compared before all the others."""
    return np.argsort(-cells.std(axis=0), kind="stable")[:count]


def _buckets(hashes: np.ndarray, num_bands: int) -> Iterator[np.ndarray]:
    """Positions whose hashes agree on one band of bits, for each band.

    Two hashes that differ in fewer bits than there are bands agree on at least one band. The bits
    of a band are strewn over the picture: the cells of one corner agree wherever it is plain.
    """
    bits = np.unpackbits(hashes, axis=1)  # (N, NUM_BITS)
    for band in range(num_bands):
        members: defaultdict[bytes, list[int]] = defaultdict(list)
        for position, row in enumerate(np.packbits(bits[:, band::num_bands], axis=1)):
            members[row.tobytes()].append(position)
        yield from (np.array(found) for found in members.values() if len(found) > 1)
