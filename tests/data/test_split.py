"""Splits by share under odd groups, and what weights mean for splits, epochs and ranks."""

import math
import random
from collections import Counter

import pytest
from PIL import Image as Pillow

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.batches.sampler import BucketBatchSampler
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.digests import Digests
from vlmpeft.data.split import split_conversations
from vlmpeft.runtime.errors import UserError

from ..conftest import llava, write_json


@pytest.fixture(scope="module")
def processor():
    return load_processor(BaseSpec())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty pictures, each also under a second name."""
    folder = tmp_path_factory.mktemp("twice")
    for n in range(40):
        Pillow.effect_noise((20, 20), 60).convert("RGB").save(folder / f"{n}.png")
        (folder / f"copy{n}.png").write_bytes((folder / f"{n}.png").read_bytes())
    return folder


def texts(groups, **extra):
    """Conversations without pictures in groups of these sizes, tied by the column `group`."""
    return [
        Conversation(
            f"{g}-{n}",
            (Message("user", (f"question {g} {n}",)), Message("assistant", ("a",))),
            "here",
            {"group": f"g{g}"} | extra,
        )
        for g, size in enumerate(groups)
        for n in range(size)
    ]


def deal(conversations, by="group", **shares):
    return split_conversations(conversations, shares, by, Digests())


@pytest.mark.parametrize("seed", range(40))
def test_every_split_is_disjoint_complete_and_not_empty_for_any_groups_and_shares(seed):
    rng = random.Random(seed)
    sizes = [rng.choice((1, 1, 1, 2, 5, 30)) for _ in range(rng.randrange(3, 20))]
    val = rng.uniform(0.001, 0.99)
    test = rng.uniform(0.001, 0.999 - val)
    conversations = texts(sizes)
    split = deal(conversations, val=val, test=test)
    assert list(split.parts) == ["val", "test", "train"]
    assert sorted(i for part in split.parts.values() for i in part) == list(range(sum(sizes)))
    assert all(split.parts.values())
    sides = [{conversations[i].extra["group"] for i in part} for part in split.parts.values()]
    assert sum(map(len, sides)) == len(sizes)


@pytest.mark.parametrize(
    "sizes", [[1] * 200, [1, 2, 3, 4] * 20, [100] + [1] * 150, [60, 50, 40] + [2] * 50]
)
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_sizes_are_near_the_share_even_when_one_group_is_larger_than_it(sizes, share):
    parts = deal(texts(sizes), val=share, test=share).parts
    for name in ("val", "test"):
        assert len(parts[name]) == pytest.approx(share * sum(sizes), abs=2)


def test_the_least_that_can_be_taken_is_the_smallest_group():
    assert len(deal(texts([50, 40, 3, 60]), val=0.001).parts["val"]) == 3


def test_a_few_more_conversations_move_few(folder):
    moved = []
    conversations = texts([1, 2, 3] * 60)
    first = {conversations[i].id for i in deal(conversations, val=0.2).parts["val"]}
    for number in range(1, 20):
        more = [*conversations, *texts([1] * number, kind="new")]
        more = [*more[: len(conversations)], *(renamed(c) for c in more[len(conversations) :])]
        now = {more[i].id for i in deal(more, val=0.2).parts["val"]}
        moved.append(len(first - now) / len(first))
    assert max(moved) < 0.2


def renamed(conversation):
    """The same with texts and a group of its own."""
    question = Message("user", (f"new {conversation.id}",))
    messages = (question, conversation.messages[1])
    extra = {"group": f"new {conversation.id}"}
    return Conversation(f"new {conversation.id}", messages, "there", extra)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"val": float("nan")}, "each share is above 0"),
        ({"val": -0.1}, "each share is above 0"),
        ({"val": 1}, "all together below 1"),
        ({"val": 0.3, "test": 0.3}, r"data.val: 2 group\(s\) by group cannot be dealt out to 3"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares, message):
    with pytest.raises(UserError, match=message):
        deal(texts([5, 5]), **shares)


def test_a_row_without_the_column_is_named():
    conversations = [
        *texts([2, 2, 2]),
        Conversation("x", texts([1])[0].messages, "t.csv:9", {"n": 1}),
    ]
    with pytest.raises(UserError, match=r"t\.csv:9: data.split_by: there is no column 'group'"):
        deal(conversations, val=0.3)


def records(names):
    return [llava(f"about {name}", image=f"{name}.png", id=name, shop=f"s{n % 8}")
            for n, name in enumerate(names)]  # fmt: skip


@pytest.mark.parametrize("by", ["image", "shop"])
def test_through_the_data_module_no_picture_is_on_two_sides(folder, tmp_path, processor, by):
    names = [f"{prefix}{n}" for prefix in ("", "copy") for n in range(40)]
    path = write_json(tmp_path / "t.json", records(names))
    found = []
    for _ in range(2):
        data = VLMData(train=path, val=0.1, test=0.2, split_by=by, image_dir=str(folder))
        data.prepare(processor)
        found.append((data.split_members(), data.identity()))
    assert found[0] == found[1]
    members, identity = found[0]
    assert sorted(i for ids in members.values() for i in ids) == sorted(names)
    contents = [{name.removeprefix("copy") for name in ids} for ids in members.values()]
    assert sum(map(len, contents)) == 40
    assert identity["test"]["split"]["by"] == by
    assert len(members["val"]) == pytest.approx(8, abs=0 if by == "image" else 6)


def test_a_conversation_of_a_weighted_source_is_scored_once(folder, tmp_path, processor):
    path = write_json(tmp_path / "t.json", records(map(str, range(20))))
    data = VLMData(train=[{"path": path, "weight": 3}], val=0.2, image_dir=str(folder))
    data.prepare(processor)
    identity = data.identity()
    assert identity["train"]["weights"] == [(3, 16)]
    assert "weights" not in identity["val"]
    assert len(data.dataset("val")) == 4


@pytest.mark.parametrize("split", ["val", "test", "retention"])
def test_a_weight_on_what_is_scored_is_refused(folder, tmp_path, processor, split):
    path = write_json(tmp_path / "t.json", [llava("q", image=None)])
    data = VLMData(train=None, **{split: [{"path": path, "weight": 0.5}]})
    with pytest.raises(UserError, match=f"data.{split}: weight 0.5 has no effect"):
        data.prepare(processor)


def draws(weights, epochs, **settings):
    sampler = BucketBatchSampler([1] * len(weights), 4, weights=weights, **settings)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        yield Counter(i for batch in batches for i in batch)


def test_a_source_comes_as_often_as_its_weight_says_and_halves_take_turns():
    first, second, third = draws([2.0] * 10 + [0.5] * 12, 3)
    for drawn in (first, second, third):
        assert all(drawn[i] == 2 for i in range(10))
    halves = [{i for i in drawn if i >= 10} for drawn in (first, second, third)]
    assert [len(half) for half in halves] == [6, 6, 6]
    assert halves[0] | halves[1] == set(range(10, 22))
    assert halves[1] | halves[2] == set(range(10, 22))


@pytest.mark.parametrize(
    ("weight", "size"), [(0.25, 20), (0.3, 10), (0.01, 7), (1.5, 10), (3.2, 5)]
)
def test_in_enough_epochs_every_conversation_comes_equally_often(weight, size):
    each = max(1, round(weight * size))
    epochs = size // math.gcd(each, size)
    total = sum(draws([weight] * size, epochs), Counter())
    assert set(total.values()) == {each * epochs // size}
    assert total.keys() == set(range(size))


def test_a_part_is_a_function_of_seed_and_epoch():
    one, same, other = (list(draws([0.5] * 30, 2, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_rank_has_as_many_batches_even_with_fewer_batches_than_ranks(world_size):
    ranks = [
        list(BucketBatchSampler([1] * 5, 4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert {i for batches in ranks for batch in batches for i in batch} == set(range(5))


def test_resuming_gives_the_tail_of_the_same_weighted_epoch():
    settings = {"weights": [2.0] * 7 + [0.4] * 20, "seed": 3}
    whole, resumed = (BucketBatchSampler(range(27), 4, **settings) for _ in range(2))
    for epoch in range(4):
        whole.set_epoch(epoch)
        batches = list(whole)
        resumed.resume(epoch, 2)
        assert list(resumed) == batches[2:]


def test_a_digest_is_of_the_file_that_a_relative_path_means_here(tmp_path, monkeypatch):
    import os

    found = []
    for name, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(content)
        os.utime(tmp_path / name / "x.png", ns=(10**18, 10**18))
        monkeypatch.chdir(tmp_path / name)
        digests = Digests()
        found.append(digests.image(Image("x.png")))
        digests.all([])  # remembers what it found for other runs
    assert found[0] != found[1]


def test_a_file_name_that_is_not_utf8_is_remembered_like_others(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMPEFT_CACHE", str(tmp_path / "cache"))
    image = Image(str(tmp_path / "\udcff.png"))
    open(image.source, "wb").close()  # noqa: PTH123
    digests = Digests()
    assert digests.image(image)
    digests.all([])
    assert len(Digests()._index._known) == 1
