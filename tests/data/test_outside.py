"""With data.allow_outside: false no record can show a picture that lies outside of its image_dir."""

import io
import json
import os
import tarfile

import pytest
from PIL import Image as Pillow

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.formats.sources import read_conversations
from vlmpeft.runtime.errors import UserError

from ..conftest import call, llava, write_json


@pytest.fixture
def folder(tmp_path):
    """inside/{a.png, link.png -> outside, away -> outside}, outside/b.png, and a link to inside."""
    for name in ("inside/deep", "outside"):
        (tmp_path / name).mkdir(parents=True)
    Pillow.new("RGB", (32, 32), "red").save(tmp_path / "inside/a.png")
    Pillow.new("RGB", (32, 32), "blue").save(tmp_path / "outside/b.png")
    (tmp_path / "inside/link.png").symlink_to("../outside/b.png")
    (tmp_path / "inside/own.png").symlink_to("a.png")
    (tmp_path / "inside/away").symlink_to(tmp_path / "outside")
    (tmp_path / "door").symlink_to("inside")
    return tmp_path


INSIDE = ["a.png", "own.png", "deep/../a.png", "./a.png", "file://a.png", "../inside/a.png", "{}/inside/a.png"]  # fmt: skip
OUTSIDE = [
    "../outside/b.png",
    "deep/../../outside/b.png",
    "{}/outside/b.png",
    "file://{}/outside/b.png",
    "link.png",
    "away/b.png",
    "away/../outside/b.png",
    "../gone.png",
    "../inside2/a.png",
    "/dev/zero",
]


def _raise(error):
    raise error


def read(path, on_error=_raise, image_dir=None, **settings):
    return read_conversations(str(path), image_dir, on_error, **{"allow_outside": False} | settings)


def written(folder, kind, image):
    """A data file of a kind whose only record shows that picture."""
    row = {"image": image, "question": "what?", "answer": "that"}
    path = folder / f"inside/d{kind}"
    if kind == ".json":
        path.write_text(json.dumps([llava(image=image)]))
    elif kind == ".jsonl":
        part = {"type": "image_url", "image_url": {"url": image}}
        turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "that"}]
        path.write_text(json.dumps({"messages": turns}) + "\n")
    elif kind == ".csv":
        path.write_text(f"image,question,answer\n{image},what?,that\n")
    elif kind == ".tar":
        with tarfile.open(path, "w") as tar:
            content = json.dumps(row).encode()
            member = tarfile.TarInfo("1.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    else:
        save(path, kind, row)
    return path


def save(path, kind, row):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    if kind == ".struct.parquet":
        row["image"] = {"bytes": None, "path": row["image"]}
    table = pa.Table.from_pylist([row])
    if kind.endswith(".parquet"):
        parquet.write_table(table, path)
        return
    path.mkdir(exist_ok=True)
    with pa.ipc.new_stream(path / "data.arrow", table.schema) as stream:
        stream.write_table(table)
    write_json(path / "state.json", {"_data_files": [{"filename": "data.arrow"}]})


KINDS = [".json", ".jsonl", ".csv", ".tar", ".parquet", ".struct.parquet", ".folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_outside_are_errors_of_their_record_in_every_kind_of_file(folder, kind):
    image_dir = str(folder / "inside")
    for image in (one.format(folder) for one in OUTSIDE):
        path = written(folder, kind, image)
        assert read(path, image_dir=image_dir, allow_outside=True)
        with pytest.raises(UserError, match=r"lies outside of image_dir .*allow_outside") as caught:
            read(path, image_dir=image_dir)
        assert str(path) in str(caught.value)
        assert image.removeprefix("file://")[:40] in str(caught.value)
    for image in (one.format(folder) for one in INSIDE):
        assert len(read(written(folder, kind, image), image_dir=image_dir)) == 1, image


def test_an_image_dir_that_is_a_link_is_what_it_leads_to(folder):
    path = written(folder, ".json", "a.png")
    assert read(path, image_dir=str(folder / "door"))
    with pytest.raises(UserError, match="lies outside"):
        read(written(folder, ".json", "link.png"), image_dir=str(folder / "door"))


def test_the_folder_of_the_annotation_file_counts_where_there_is_no_image_dir(folder):
    assert read(written(folder, ".json", "a.png"))
    with pytest.raises(UserError, match="lies outside"):
        read(written(folder, ".json", "../outside/b.png"))
    elsewhere = write_json(folder / "d.json", [llava(image="outside/b.png")])
    assert read(elsewhere)


def test_pictures_in_the_data_file_itself_are_inside(folder, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setenv("VLMPEFT_CACHE", str(folder / "outside/cache"))
    content = (folder / "outside/b.png").read_bytes()
    row = {"image": {"bytes": content, "path": "/etc/x.png"}, "question": "q", "answer": "a"}
    parquet.write_table(pa.Table.from_pylist([row]), folder / "d.parquet")
    with tarfile.open(folder / "d.tar", "w") as tar:
        tar.add(folder / "outside/b.png", "1.png")
        tar.add(written(folder, ".json", "x.png"), "1.notes")
        fields = folder / "1.json"
        write_json(fields, {"question": "q", "answer": "a"})
        tar.add(fields, "1.json")
    for name in ("d.parquet", "d.tar"):
        (one,) = read(folder / name, image_dir=str(folder / "inside"))
        assert len(one.images) == 1


def test_fit_data_sees_it_in_every_split_and_skip_lists_it(folder):
    records = [llava(), llava(image="../outside/b.png", id="x")]
    path = write_json(folder / "inside/d.json", records)
    processor = load_processor(BaseSpec())
    for split in ("train", "val", "test"):
        given = {"train": None, split: path}
        data = VLMData(**given, allow_outside=False, on_error="skip")
        data.prepare(processor, splits=(split,))
        assert len(data.conversations(split)) == 1
        (line,) = data.skipped
        assert "d.json record 1: image '../outside/b.png' lies outside" in line
        with pytest.raises(UserError, match="lies outside"):
            VLMData(**given, allow_outside=False).prepare(processor, splits=(split,))


def test_the_workbench_is_inside_also_through_a_cache_that_is_a_link(folder, monkeypatch):
    (folder / "cache").symlink_to(os.environ["VLMPEFT_CACHE"])
    monkeypatch.setenv("VLMPEFT_CACHE", str(folder / "cache"))
    data = VLMData(train="workbench:format", allow_outside=False)
    assert len(data.reader.read("val").conversations) == 200


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet", "d.tar", "d"])
def test_pipes_and_devices_are_refused_as_data_files(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"data file .*{name} is a device or a pipe"):
        read(tmp_path / name)


def test_data_check_ends_with_exit_code_2_at_a_picture_outside(folder, capsys):
    path = written(folder, ".json", "link.png")
    assert call("data", "check", "--data.train", path, "--data.allow_outside=false") == 2
    assert "lies outside of image_dir" in capsys.readouterr().err
