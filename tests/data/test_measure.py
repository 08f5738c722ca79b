"""Lengths are measured once and remembered by content, by however many workers."""

import base64
import io
import json
import time

import pytest
from PIL import Image as Pillow

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.audit.audit import audit
from vlmpeft.data.batches.dataset import EncodedDataset, scored_items
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.data.batches.lengths import _long_conversations, _Measuring
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.data.datamodule import VLMData

from ..conftest import llava, write_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five pictures of different sizes."""
    folder = tmp_path_factory.mktemp("many")
    for n in range(5):
        Pillow.effect_noise((20 + n, 20), 60).convert("RGB").save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def processor():
    return load_processor(BaseSpec())


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


def test_scored_turns_of_a_long_conversation_are_measured_as_each_by_itself(processor):
    """Once with its picture in the first turn, once with pictures in later turns, which are not yet there."""
    picture = Image("data:image/png;base64," + base64.b64encode(png()).decode())
    for pictured in ({0}, {0, 20}):
        messages = [
            Message("assistant", (f"it is {n} red",))
            if n % 2
            else Message("user", (*([picture] if n in pictured else []), f"what {n}?"))
            for n in range(60)
        ]
        items = scored_items([Conversation("long", tuple(messages), "record 0")])
        dataset = EncodedDataset(items, Encoder(processor))
        known = dict(_long_conversations(dataset))
        assert set(known) == {n for n in range(30) if 2 * n + 1 >= max(pictured)}
        alone = _Measuring(dataset, {})
        assert [known[n] for n in known] == [alone[n] for n in known]


def png():
    stream = io.BytesIO()
    Pillow.new("RGB", (20, 20), "red").save(stream, "PNG")
    return stream.getvalue()


def test_a_record_of_many_turns_is_checked_in_seconds(tmp_path, processor, monkeypatch):
    monkeypatch.setenv("VLMPEFT_CACHE", str(tmp_path / "cache"))
    turns = [("human", "what?"), ("gpt", "gear")] * 2000
    record = {"id": "a", "conversations": [{"from": who, "value": said} for who, said in turns]}
    path = write_json(tmp_path / "t.json", [record])
    started = time.process_time()
    data = VLMData(train=path, val=path, over_length="drop", max_length=100_000)
    data.prepare(processor)
    found = audit(data)
    assert time.process_time() - started < 10
    assert found.splits["val"].answers == 2000
    assert found.samples[0].hidden == data.lengths("train")[0] - len(found.samples[0].rows) > 0
