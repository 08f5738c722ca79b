"""Controls show the wrong picture, or none: never the right one, and always the same wrong one."""

import itertools

import numpy as np
import pytest
from PIL import Image as Pillow

from vlmpeft.data.batches.dataset import scored_items
from vlmpeft.data.controls import CONTROLS, blank, shuffled
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.data.images import open_image, read_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of different sizes; the first four also under another name."""
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(12):
        Pillow.effect_noise((20 + n, 30), 60).convert("RGB").save(folder / f"{n}.png")
    for n in range(4):
        (folder / f"copy{n}.png").write_bytes((folder / f"{n}.png").read_bytes())
    return folder


def items(folder, *names):
    """One item for each name or tuple of names."""
    conversations = []
    for number, several in enumerate(names):
        pictures = [Image(str(folder / f"{n}.png")) for n in (several if isinstance(several, tuple) else (several,))]  # fmt: skip
        parts = tuple(part for picture in pictures for part in (picture, "and"))
        messages = (Message("system", ("s",)), Message("user", (*parts, f"q{number}")), Message("assistant", ("a",)))  # fmt: skip
        conversations.append(Conversation(str(number), messages, "here", {"kind": "k"}))
    return scored_items(conversations)


def contents(item):
    return [read_bytes(image) for image in item.conversation.images]


MANY = [*range(12), *range(12), "copy0", "copy1", "copy2", "copy3"]


def test_blank_is_grey_and_of_the_same_size(folder):
    before = items(folder, *range(6), (7, 8))
    for item, changed in zip(before, blank(before), strict=True):
        pictures = [open_image(image) for image in changed.conversation.images]
        assert [p.size for p in pictures] == [open_image(i).size for i in item.conversation.images]
        assert all(np.unique(np.asarray(picture)).tolist() == [127] for picture in pictures)


def test_shuffled_never_shows_an_item_its_own_picture_whatever_it_is_called(folder):
    before = items(folder, *MANY)
    for item, changed in zip(before, shuffled(before), strict=True):
        assert contents(changed) != contents(item)


def test_the_same_picture_is_always_replaced_by_the_same_other_whatever_it_is_called(folder):
    before = items(folder, *MANY)
    pairs = {
        (contents(item)[0], contents(changed)[0])
        for item, changed in zip(before, shuffled(before), strict=True)
    }
    assert len(pairs) == 12
    assert len({other for _, other in pairs}) == 12


@pytest.mark.parametrize("order", [1, -1])
def test_shuffled_is_deterministic(folder, order):
    before = items(folder, *MANY[::order])
    assert shuffled(before) == shuffled(before)


def test_several_pictures_are_replaced_by_others_none_of_which_is_their_own(folder):
    pairs = [(n, n + 1) for n in range(10)]
    before = items(folder, *pairs, 0, 1, (0, 1, 2), (3, 4, 5))
    for item, changed in zip(before, shuffled(before), strict=True):
        assert len(contents(changed)) == len(contents(item))
        assert not set(contents(changed)) & set(contents(item))


def test_where_all_pairs_have_a_picture_in_common_the_pair_is_another(folder):
    before = items(folder, *itertools.combinations(range(3), 2))
    for item, changed in zip(before, shuffled(before), strict=True):
        assert set(contents(changed)) != set(contents(item))


@pytest.mark.parametrize("control", CONTROLS)
def test_text_ids_turns_and_fields_stay(folder, control):
    text = scored_items(
        [Conversation("t", (Message("user", ("hi",)), Message("assistant", ("a",))), "here")]
    )
    before = [*items(folder, *MANY), *text]
    after = CONTROLS[control](before)
    assert after[-1] == text[0]
    for item, changed in zip(before, after, strict=True):
        assert (changed.id, changed.turn, changed.expected) == (item.id, item.turn, item.expected)
        assert changed.prompt == item.prompt
        assert changed.conversation.extra == item.conversation.extra
        shapes = [
            [isinstance(part, Image) or part for m in i.conversation.messages for part in m.parts]
            for i in (item, changed)
        ]
        assert shapes[0] == shapes[1]
