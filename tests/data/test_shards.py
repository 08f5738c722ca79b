"""Tar shards in the WebDataset layout: samples are found by their place in the file, and nothing is lost."""

import io
import json
import random
import tarfile

import pytest
from PIL import Image as Pillow

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.formats.rows import Columns, Recipe
from vlmpeft.data.formats.shards import read_shard
from vlmpeft.data.formats.sources import read_conversations
from vlmpeft.data.images import open_image, read_bytes
from vlmpeft.runtime.errors import UserError

QA = json.dumps({"question": "what?", "answer": "that", "kind": "k"}).encode()


@pytest.fixture(scope="module")
def drawn():
    """Six pictures as (encoded bytes, pixels), JPEG and PNG in turn."""
    found = []
    for number in range(6):
        picture = Pillow.effect_noise((24, 16 + number), 80).convert("RGB")
        buffer = io.BytesIO()
        picture.save(buffer, "PNG" if number % 2 else "JPEG")
        found.append((buffer.getvalue(), Pillow.open(buffer).convert("RGB").tobytes()))
    return found


@pytest.fixture
def shard(tmp_path):
    """Write a shard of (name, content); gives its path."""

    def write(members, name="s.tar", kind="w", tar_format=tarfile.PAX_FORMAT):
        path = tmp_path / name
        with tarfile.open(path, kind, format=tar_format) as tar:
            for member_name, content in members:
                member = tarfile.TarInfo(member_name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return write


def _raise(error):
    raise error


def read(path, recipe=None, on_error=_raise):
    return read_conversations(str(path), None, on_error, recipe or Recipe())


def texts(conversation):
    return [message.text for message in conversation.messages]


def pixels(conversation):
    return [open_image(image).tobytes() for image in conversation.images]


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_a_picture_with_json_beside_it_is_a_row(shard, drawn, tar_format):
    folder = "d/" if tar_format == tarfile.USTAR_FORMAT else "long/" * 40
    members = [("./" + folder + "1.jpg", drawn[0][0]), ("./" + folder + "1.json", QA)]
    path = shard(members, tar_format=tar_format)
    (one,) = read(path)
    assert one.id == folder + "1"
    assert one.place == f"{path} sample {folder}1"
    assert texts(one) == ["what?", "that"]
    assert one.extra["kind"] == "k"
    assert pixels(one) == [drawn[0][1]]
    assert read_bytes(one.images[0]) == drawn[0][0]
    assert one.images[0].label == "./" + folder + "1.jpg"


def test_a_picture_with_a_text_beside_it_is_a_caption(shard, drawn):
    path = shard([("a.png", drawn[1][0]), ("a.txt", "ein Mützchen\n".encode()), ("a.cls", b"3")])
    (one,) = read(path, Recipe(Columns(answers="txt"), prompt="class {cls}?"))
    assert texts(one) == ["class 3?", "ein Mützchen"]
    assert pixels(one) == [drawn[1][1]]


def test_two_pictures_come_in_the_order_of_the_file(shard, drawn):
    path = shard([("1.right.png", drawn[1][0]), ("1.json", QA), ("1.LEFT.JPG", drawn[0][0])])
    (one,) = read(path)
    assert pixels(one) == [drawn[1][1], drawn[0][1]]


def test_a_conversation_in_the_json_takes_the_pictures_of_its_sample(shard, drawn):
    turns = [
        {"from": "human", "value": "<image>\nor <image>?"},
        {"from": "gpt", "value": "neither"},
    ]
    record = {"id": "own", "image": "gone.jpg", "images": ["gone.jpg"], "conversations": turns}
    members = [("1.json", json.dumps(record).encode()), ("1.a.jpg", drawn[0][0]), ("1.b.png", drawn[1][0])]  # fmt: skip
    (one,) = read(shard(members))
    assert one.id == "own"
    assert texts(one) == ["or ?", "neither"]
    assert pixels(one) == [drawn[0][1], drawn[1][1]]


def test_files_of_a_sample_need_not_be_neighbours(shard, drawn):
    pictures = [(f"{n}.jpg", drawn[n][0]) for n in range(3)]
    found = read(shard([*pictures, *((f"{n}.json", QA) for n in (2, 0, 1))]))
    assert [(c.id, pixels(c)) for c in found] == [(str(n), [drawn[n][1]]) for n in range(3)]


def test_hidden_files_folders_and_binary_extras_are_left_out(shard, drawn):
    members = [("._1.jpg", b"\0\xff"), (".DS_Store", b"x"), ("README", b"x"), ("1.jpg", drawn[0][0]),
               ("1.json", QA), ("1.npy", b"\x93NUMPY\xff\xfe")]  # fmt: skip
    (one,) = read(shard(members))
    assert one.extra == {"id": "1", "question": "what?", "answer": "that", "kind": "k"}


def test_a_pattern_reads_all_shards_in_the_order_of_their_names(shard, drawn, tmp_path):
    for n in (2, 0, 1):
        shard([(f"{n}.jpg", drawn[n][0]), (f"{n}.json", QA)], name=f"part-{n}.tar")
    assert [c.id for c in read(tmp_path / "part-*.tar")] == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "S.TAR.GZ"])
def test_a_compressed_shard_is_refused_with_what_to_do(shard, drawn, name):
    path = shard([("1.jpg", drawn[0][0]), ("1.json", QA)], name=name, kind="w:gz")
    with pytest.raises(
        UserError, match=rf"{name} .* uncompressed tar file: .*; unpack a \.tar\.gz"
    ):
        read(path)


def test_a_shard_is_refused_wherever_it_is_cut(shard, drawn):
    """Also between two members, where tarfile itself sees the end of the file and no error."""
    members = [(f"{n}.{e}", c) for n in range(3) for e, c in (("jpg", drawn[n][0]), ("json", QA))]
    path = shard(members)
    content = path.read_bytes()
    assert len(read(path)) == 3
    with tarfile.open(path) as tar:
        starts = [member.offset for member in tar]
        end = tar.offset
    cuts = {
        0,
        1,
        511,
        *starts,
        *(s + 100 for s in starts),
        *(s + 512 for s in starts),
        end,
        end + 511,
    }
    for cut in sorted(cuts):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError) as caught:
            read(path, on_error=lambda error: None)
        assert path.name in str(caught.value)
        assert len(str(caught.value)) < 500


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(shard, drawn):
    path = shard([(f"{n}.json", QA) for n in range(4)])
    content = bytearray(path.read_bytes())
    content[2048 + 148 : 2048 + 156] = b"99999999"  # the checksum of the third member
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"s\.tar is cut or damaged at byte 2048"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.json", b"{oops", "sample 1: 1.json is not valid JSON"),
        ("1.json", b"[" * 100_000, "sample 1: 1.json is not valid JSON"),
        ("1.json", b'"\xff"', "sample 1: 1.json is not UTF-8 text"),
        ("1.txt", b"\xff", "sample 1: 1.txt is not UTF-8 text"),
        ("1.json", b"[1]", "sample 1: no 'conversations' and no 'messages', and no question"),
    ],
)
def test_a_broken_sample_is_named_and_can_be_passed_over(shard, name, content, message):
    path = shard([(name, content), ("2.json", QA)])
    with pytest.raises(UserError) as caught:
        read(path)
    assert f"{path} {message}" in str(caught.value)
    errors = []
    assert [c.id for c in read(path, on_error=errors.append)] == ["2"]
    assert len(errors) == 1


def test_an_empty_shard_is_refused(shard):
    with pytest.raises(UserError, match="no usable conversation"):
        read(shard([]))


def test_nothing_of_the_pictures_is_read_until_they_are_opened(shard, drawn, monkeypatch):
    path = shard([("1.jpg", drawn[0][0]), ("1.json", QA)])
    read_members = []
    extract = tarfile.TarFile.extractfile
    monkeypatch.setattr(
        tarfile.TarFile, "extractfile", lambda t, m: read_members.append(m.name) or extract(t, m)
    )
    ((_, record),) = read_shard(path)
    assert read_members == ["1.json"]
    (image,) = record["image"]
    assert (image.source, image.size) == (str(path), len(drawn[0][0]))
    assert path.read_bytes()[image.offset : image.offset + image.size] == drawn[0][0]


def test_a_set_of_shards_is_shuffled_and_any_item_opened_by_itself(shard, drawn, tmp_path):
    for n in range(6):
        fields = json.dumps({"question": f"q{n}", "answer": f"a{n}"}).encode()
        shard([(f"{n}.jpg", drawn[n][0]), (f"{n}.json", fields)], name=f"part-{n}.tar")
    data = VLMData(train=str(tmp_path / "part-*.tar"), batch_size=2, cache_bytes=0)
    data.prepare(load_processor(BaseSpec()), splits=("train",))
    data.trainer = None
    data.train_dataloader()
    orders = []
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        orders.append([i for batch in data.sampler for i in batch])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6))
    dataset = data.dataset("train")
    in_order = [dataset[i][1].model_inputs["pixel_values"] for i in range(6)]
    for i in random.Random(0).sample(range(6), 6):
        item, encoded = dataset[i]
        assert texts(item.conversation) == [f"q{i}", f"a{i}"]
        assert bool((encoded.model_inputs["pixel_values"] == in_order[i]).all())
        assert pixels(item.conversation) == [drawn[i][1]]
