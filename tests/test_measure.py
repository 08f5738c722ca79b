"""Lengths are measured once and remembered by content, by however many workers."""

import json

import pytest
from PIL import Image as Pillow

from vlmpeft.base import BaseSpec, load_processor
from vlmpeft.data.datamodule import VLMData

from .conftest import llava, write_json


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
