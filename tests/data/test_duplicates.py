"""Near-duplicate pictures: what survives re-encoding is found, what differs in one part is not."""

import dataclasses
import io
import random
import time

import numpy as np
import pytest
from PIL import Image

from vlmpeft.data.audit.near_duplicates import Signature, near_duplicates, signature
from vlmpeft.data.workbench.scene import COLOURS, NAMES, draw_scene, random_scene


def scenes(count, seed=0):
    """Different layouts."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        scene = random_scene(rng)
        found.setdefault(scene.signature, scene)
    return list(found.values())


def enlarged(picture, side=192):
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def as_jpeg(picture, quality=60):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def half(picture):
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)


def with_other(scene, field, options, rng):
    """The scene with the name or the colour of one part changed."""
    place = rng.choice([i for i, part in enumerate(scene.parts) if part])
    part, parts = scene.parts[place], list(scene.parts)
    other = rng.choice([option for option in options if option != getattr(part, field)])
    parts[place] = dataclasses.replace(part, **{field: other})
    return dataclasses.replace(scene, parts=tuple(parts))


def brute_force(signatures, max_bits, max_level):
    """Connected components by comparing every pair, without numpy and union-find."""
    near = {i: {i} for i in range(len(signatures))}
    for i, a in enumerate(signatures):
        for j, b in enumerate(signatures):
            level = max(abs(x - y) for x, y in zip(a.thumbnail, b.thumbnail, strict=True))
            if (a.bits ^ b.bits).bit_count() <= max_bits and level <= max_level:
                near[i].add(j)
    groups = set()
    for i in near:
        group, edge = {i}, {i}
        while edge := {k for j in edge for k in near[j]} - group:
            group |= edge
        groups.add(tuple(sorted(group)))
    return sorted(group for group in groups if len(group) > 1)


def test_signature_of_a_staircase():
    # grey rises by 15 levels from each column to the next, in the upper half only
    pixels = np.full((160, 170, 3), 50, np.uint8)
    pixels[:80] = (np.arange(170) // 10 * 15)[None, :, None]
    one = signature(Image.fromarray(pixels))
    assert one.bits >> 128 == (1 << 128) - 1
    assert one.bits & ((1 << 112) - 1) == 0
    assert len(one.thumbnail) == 16 * 16 * 3
    assert one.thumbnail[-3:] == bytes([50, 50, 50])


def test_noise_on_a_plain_picture_sets_no_bit():
    noise = np.random.default_rng(0).integers(120, 131, (64, 64, 3)).astype(np.uint8)
    assert signature(Image.fromarray(noise)).bits == 0


@pytest.mark.parametrize("change", [as_jpeg, half, lambda p: half(as_jpeg(p)), Image.Image.copy])
def test_changed_copies_are_found_and_nothing_else(change):
    pictures = [enlarged(draw_scene(scene)) for scene in scenes(40)]
    copies = [change(picture) for picture in pictures]
    groups = near_duplicates([signature(picture) for picture in (*pictures, *copies)])
    assert groups == [(i, 40 + i) for i in range(40)]


@pytest.mark.parametrize("change", [as_jpeg, half])
def test_small_pictures_need_the_wider_level_and_get_by_with_it(change):
    pictures = [draw_scene(scene) for scene in scenes(100)]
    copies = [change(picture) for picture in pictures]
    groups = near_duplicates([signature(picture) for picture in (*pictures, *copies)], max_level=40)
    assert groups == [(i, 100 + i) for i in range(100)]


@pytest.mark.parametrize(("field", "options"), [("colour", COLOURS), ("name", NAMES)])
@pytest.mark.parametrize("max_level", [12, 40])
def test_one_part_that_differs_makes_another_picture(field, options, max_level):
    rng = random.Random(1)
    for scene in scenes(60):
        other = with_other(scene, field, options, rng)
        pair = [signature(draw_scene(scene)), signature(draw_scene(other))]
        assert near_duplicates(pair, max_level=max_level) == []


def test_the_hash_alone_would_take_another_colour_for_the_same():
    rng = random.Random(1)
    pairs = [(scene, with_other(scene, "colour", COLOURS, rng)) for scene in scenes(60)]
    bits = [[signature(draw_scene(scene)).bits for scene in pair] for pair in pairs]
    assert any((a ^ b).bit_count() <= 10 for a, b in bits)


def test_different_scenes_form_no_group():
    signatures = [signature(draw_scene(scene)) for scene in scenes(300)]
    assert near_duplicates(signatures) == []
    assert near_duplicates(signatures, max_level=40) == []


def random_signatures(rng, count):
    """Random ones, each followed by some that are near it, about at the limits."""
    found = []
    while len(found) < count:
        bits = int.from_bytes(rng.bytes(32), "big")
        cells = rng.integers(20, 230, 768)
        for _ in range(rng.integers(1, 5)):
            found.append(Signature(bits, cells.astype(np.uint8).tobytes()))
            for position in rng.choice(256, rng.integers(0, 6), replace=False):
                bits ^= 1 << int(position)
            cells = cells + rng.integers(-3, 4, 768)
    order = rng.permutation(len(found))
    return [found[i] for i in order]


@pytest.mark.parametrize(("max_bits", "max_level"), [(3, 4), (0, 255), (300, 3), (5, 6)])
def test_groups_are_those_of_comparing_every_pair(max_bits, max_level):
    signatures = random_signatures(np.random.default_rng(max_bits), 60)
    expected = brute_force(signatures, max_bits, max_level)
    assert expected
    assert len(expected) < 60
    assert near_duplicates(signatures, max_bits, max_level) == expected


def test_both_limits_are_inclusive_and_each_is_enough_to_part():
    cells = bytes([100] * 768)
    one = Signature(0, cells)
    for bits, level, found in ((10, 12, True), (11, 12, False), (10, 13, False)):
        other = Signature((1 << bits) - 1, bytes([100 + level, *cells[1:]]))
        assert bool(near_duplicates([one, other])) is found


def test_equal_pictures_are_one_group_and_none_is_no_group():
    blank = signature(Image.new("RGB", (30, 20), "white"))
    assert near_duplicates([blank] * 5000) == [tuple(range(5000))]
    assert near_duplicates([]) == near_duplicates([blank]) == []


@pytest.mark.parametrize(("lowest", "count"), [(200, 0), (250, 1)])
def test_thousands_of_pictures_that_share_every_band_take_seconds(lowest, count):
    """All far from one another as on plain paper, or all near as before a still camera."""
    cells = np.random.default_rng(0).integers(lowest, 256, (3000, 768)).astype(np.uint8)
    started = time.perf_counter()
    groups = near_duplicates([Signature(0, row.tobytes()) for row in cells])
    assert [len(group) for group in groups] == [3000] * count
    assert time.perf_counter() - started < 60
