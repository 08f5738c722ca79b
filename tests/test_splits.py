"""Splits by share keep together what belongs together; weights decide how often a source comes."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image as Pillow

from vlmpeft.base import BaseSpec, load_processor
from vlmpeft.data.controls import blank, shuffled
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.dataset import scored_items
from vlmpeft.data.digests import Digests
from vlmpeft.data.images import open_image
from vlmpeft.data.sampler import BucketBatchSampler
from vlmpeft.data.split import split_conversations
from vlmpeft.errors import UserError

from .conftest import llava, write_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty pictures of different sizes; 0 also under another name."""
    folder = tmp_path_factory.mktemp("many")
    for n in range(30):
        Pillow.effect_noise((20 + n, 20), 60).convert("RGB").save(folder / f"{n}.png")
    (folder / "zero.png").write_bytes((folder / "0.png").read_bytes())
    return folder


def talk(folder, name, question, **extra):
    image = Image(str(folder / f"{name}.png"))
    messages = (Message("user", (image, question)), Message("assistant", ("a",)))
    return Conversation(f"{name} {question}", messages, "here", extra)


@pytest.fixture(scope="module")
def talks(folder):
    """Three questions about each of thirty pictures, one more about picture 0 under its other name."""
    found = [talk(folder, n, q, shop=f"s{n % 10}") for n in range(30) for q in "xyz"]
    return [*found, talk(folder, "zero", "w", shop="s0")]


def deal(talks, shares, by="image"):
    return split_conversations(talks, shares, by, Digests())


def contents(talks, positions):
    digests = Digests()
    return {digest for i in positions for digest in digests.images(talks[i])}


def test_no_picture_is_on_two_sides_whatever_it_is_called(talks):
    split = deal(talks, {"val": 0.2, "test": 0.1})
    sides = [contents(talks, part) for part in split.parts.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 30
    assert sorted(i for part in split.parts.values() for i in part) == list(range(91))
    assert 18 <= len(split.parts["val"]) <= 22
    assert split.groups == 30


def test_the_same_data_splits_the_same_way_in_any_order(talks):
    ids = {talks[i].id for i in deal(talks, {"val": 0.2}).parts["val"]}
    turned = talks[::-1]
    assert {turned[i].id for i in deal(turned, {"val": 0.2}).parts["val"]} == ids


def test_data_added_later_moves_few(talks):
    first = {talks[i].id for i in deal(talks[:60], {"val": 0.3}).parts["val"]}
    more = {talks[i].id for i in deal(talks[:75], {"val": 0.3}).parts["val"]}
    assert len(first & more) >= 0.6 * len(first)


def test_values_of_a_column_stay_together_with_their_pictures(talks):
    split = deal(talks, {"val": 0.3}, by="shop")
    shops = [{talks[i].extra["shop"] for i in part} for part in split.parts.values()]
    assert not shops[0] & shops[1]
    assert split.groups == 10


@pytest.mark.parametrize(
    ("shares", "by", "message"),
    [
        ({"val": 0.0}, "image", "each share is above 0"),
        ({"val": 0.6, "test": 0.4}, "image", "all together below 1"),
        ({"val": 0.5}, "shp", "there is no column 'shp'. Did you mean shop"),
    ],
)
def test_impossible_splits_are_refused(talks, shares, by, message):
    with pytest.raises(UserError, match=message):
        deal(talks, shares, by)


def test_one_picture_cannot_be_split(folder):
    with pytest.raises(UserError, match="1 group"):
        deal([talk(folder, 0, q) for q in "abc"], {"val": 0.3})


@pytest.fixture(scope="module")
def processor():
    return load_processor(BaseSpec())


def test_a_share_becomes_a_split_of_the_run_and_its_record(folder, processor, tmp_path):
    records = [llava(q, image=f"{n}.png", id=f"{n}{q}") for n in range(30) for q in "xy"]
    train = write_json(tmp_path / "train.json", records)
    data = VLMData(train=train, val=0.1, test=0.2, image_dir=str(folder))
    data.prepare(processor)
    numbers = {name: entry["conversations"] for name, entry in data.identity().items()}
    assert numbers == {"train": 42, "val": 6, "test": 12}
    assert data.identity()["val"]["split"] == {
        "by": "image",
        "shares": {"val": 0.1, "test": 0.2},
        "groups": 30,
    }
    members = data.split_members()
    assert sorted(i for ids in members.values() for i in ids) == sorted(r["id"] for r in records)
    alone = VLMData(train=train, val=0.1, test=0.2, image_dir=str(folder))
    alone.prepare(processor, splits=("val",))
    assert alone.split_members()["val"] == members["val"]


def weighted(folder, tmp_path, processor):
    sources = []
    for name, weight in (("often", 2), ("seldom", 0.5)):
        records = [llava(f"{name} {n}", image=f"{n}.png", id=f"{name} {n}") for n in range(20)]
        path = write_json(tmp_path / f"{name}.json", records)
        sources.append({"path": path, "weight": weight})
    data = VLMData(train=sources, image_dir=str(folder), batch_size=8)
    data.prepare(processor, splits=("train",))
    data.trainer = None
    data.train_dataloader()
    return data


def epoch(data, number):
    data.sampler.set_epoch(number)
    drawn = [i for batch in data.sampler for i in batch]
    return Counter(data.dataset("train").items[i].id for i in drawn)


def test_weights_say_how_often_each_conversation_comes_in_an_epoch(folder, tmp_path, processor):
    data = weighted(folder, tmp_path, processor)
    first, second = epoch(data, 0), epoch(data, 1)
    for drawn in (first, second):
        assert all(drawn[f"often {n}"] == 2 for n in range(20))
        assert sum(drawn[f"seldom {n}"] for n in range(20)) == 10
        assert drawn.total() == 50
    assert first != second
    assert len(data.sampler) == 7
    assert data.identity()["train"]["weights"] == [(0.5, 20), (2, 20)]


def test_a_weighted_epoch_is_resumed_where_it_stopped():
    def sampler():
        return BucketBatchSampler(range(1, 41), 4, weights=[2.0] * 10 + [0.3] * 30, seed=1)

    whole, resumed = sampler(), sampler()
    whole.set_epoch(3)
    resumed.resume(3, 4)
    batches = list(whole)
    assert list(resumed) == batches[4:]
    assert len(batches) == len(whole) == 8


def test_a_weight_where_it_has_no_effect_is_refused(folder, tmp_path, processor):
    path = write_json(tmp_path / "v.json", [llava(image="0.png")])
    data = VLMData(val=[{"path": path, "weight": 2}], image_dir=str(folder))
    with pytest.raises(UserError, match="no effect"):
        data.prepare(processor, splits=("val",))


def test_blank_pictures_are_grey_and_keep_their_size(talks):
    for item in blank(scored_items(talks[:6])):
        (image,) = item.conversation.images
        picture = open_image(image)
        assert picture.size == open_image(Image(image.source)).size
        assert np.unique(np.asarray(picture)).tolist() == [127]


def test_shuffled_never_shows_the_own_picture_and_always_the_same_other(talks):
    items = scored_items(talks)
    other = shuffled(items)
    assert [o.conversation.images for o in other] == [
        o.conversation.images for o in shuffled(items)
    ]
    shown = {}
    for item, changed in zip(items, other, strict=True):
        assert changed.conversation.images != item.conversation.images
        assert changed.prompt == item.prompt
        assert shown.setdefault(item.conversation.images, changed.conversation.images) == (
            changed.conversation.images
        )
    assert len(set(shown.values())) == len(shown)


def test_text_alone_is_left_as_it_is_and_one_picture_cannot_be_shuffled(folder):
    text = Conversation("t", (Message("user", ("hi",)), Message("assistant", ("a",))))
    (same,) = shuffled(scored_items([text]))
    assert same.conversation == text
    with pytest.raises(UserError, match="needs two items"):
        shuffled(scored_items([talk(folder, 0, "x")]))


def test_lengths_are_measured_once_and_remembered_by_content(
    folder, tmp_path, processor, monkeypatch
):
    monkeypatch.setenv("VLMPEFT_CACHE", str(tmp_path / "cache"))
    path = write_json(tmp_path / "t.json", [llava(f"q{n}", image=f"{n}.png") for n in range(5)])

    def prepare(**settings):
        data = VLMData(train=path, image_dir=str(folder), **settings)
        data.prepare(processor, splits=("train",))
        return data

    first, again = prepare(), prepare()
    assert len(first.dataset("train")._cache) == 5
    assert again.dataset("train")._cache == {}
    assert again.measured == first.measured
    assert len(prepare(max_pixels=100).dataset("train")._cache) == 5
    (tmp_path / "t.json").write_text(json.dumps([llava("other", image="0.png")]))
    assert len(prepare().dataset("train")._cache) == 1


def test_workers_measure_the_same(folder, tmp_path, processor, monkeypatch):
    monkeypatch.setenv("VLMPEFT_CACHE", str(tmp_path / "cache"))
    records = [llava(f"q{n}", image=f"{n}.png") for n in range(5)] + [llava(image="gone.png")]
    path = write_json(tmp_path / "t.json", records)
    found = []
    for workers in (0, 2):
        data = VLMData(train=path, image_dir=str(folder), num_workers=workers, on_error="skip")
        data.prepare(processor, splits=("train",))
        found.append((data.measured, data.skipped))
    assert found[0] == found[1]
    assert len(found[0][1]) == 1
