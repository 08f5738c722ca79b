"""Parquet files and `datasets` folders: rows whose pictures are paths or bytes, each stored once."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from vlmpeft.data.conversation import Image
from vlmpeft.data.formats import arrow
from vlmpeft.data.formats.rows import Columns, Recipe
from vlmpeft.data.formats.sources import read_conversations
from vlmpeft.data.images import open_image
from vlmpeft.runtime.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, so that it may be counted what is in it."""
    monkeypatch.setenv("VLMPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def drawn():
    """Four pictures as (encoded bytes, pixels)."""
    found = []
    for number, kind in enumerate(("PNG", "BMP", "PNG", "PPM")):
        picture = Pillow.effect_noise((20, 10 + number), 80).convert("RGB")
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        found.append((buffer.getvalue(), picture.tobytes()))
    return found


def _raise(error):
    raise error


def read(path, split="train", recipe=None, on_error=_raise):
    return read_conversations(str(path), None, on_error, recipe or Recipe(), split)


def row(image, number=0, **more):
    return {"image": image, "question": f"q{number}", "answer": "a", "id": number} | more


def write(path, rows, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **settings)
    return path


def pixels(conversations):
    return [[open_image(image).tobytes() for image in c.images] for c in conversations]


def stores(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def as_struct(content):
    return {"bytes": content, "path": "x.png"}


@pytest.mark.parametrize("wrap", [bytes, as_struct, lambda c: [c], lambda c: [as_struct(c)]])
def test_pictures_given_as_bytes_have_the_pixels_they_had(tmp_path, cache, drawn, wrap):
    shown = [*drawn, drawn[0], drawn[2]]
    path = write(tmp_path / "d.parquet", [row(wrap(b), n) for n, (b, _) in enumerate(shown)])
    first = read(path)
    assert pixels(first) == [[p] for _, p in shown]
    assert first[0].images == first[4].images
    (store,) = stores(cache)
    assert store.stat().st_size == sum(len(b) for b, _ in drawn)
    again = read(path)
    assert again == first
    assert stores(cache) == [store]
    assert store.stat().st_size == sum(len(b) for b, _ in drawn)


def test_lists_of_pictures_and_several_columns_keep_their_order(tmp_path, drawn):
    (a, pa_), (b, pb), (c, pc), _ = drawn
    rows = [
        row([a, b], left=c),
        row([b], 1, left=None),
        row([], 2, left=a),
        row(None, 3, left=None),
    ]
    path = write(tmp_path / "d.parquet", rows)
    assert pixels(read(path)) == [[pa_, pb], [pb], [], []]
    both = Recipe(Columns(image=["left", "image"]))
    assert pixels(read(path, recipe=both)) == [[pc, pa_, pb], [pb], [pa_], []]


def test_a_path_is_used_where_there_are_no_bytes_and_null_is_no_picture(tmp_path, cache, drawn):
    (tmp_path / "x.png").write_bytes(drawn[0][0])
    rows = [
        row({"bytes": None, "path": "x.png"}),
        row({"bytes": None, "path": None}, 1),
        row(None, 2),
    ]
    assert pixels(read(write(tmp_path / "d.parquet", rows))) == [[drawn[0][1]], [], []]
    assert pixels(read(write(tmp_path / "e.parquet", [row("x.png")]))) == [[drawn[0][1]]]
    assert stores(cache) == []


def test_a_file_that_has_changed_has_a_store_of_its_own(tmp_path, drawn):
    path = write(tmp_path / "d.parquet", [row(drawn[0][0])])
    before = read(path)
    write(path, [row(drawn[1][0]), row(drawn[0][0], 1)])
    assert pixels(read(path)) == [[drawn[1][1]], [drawn[0][1]]]
    assert pixels(before) == [[drawn[0][1]]]


def test_a_store_that_another_process_finished_meanwhile_stays_whole(tmp_path, cache, drawn):
    rows = [row(b, n) for n, (b, _) in enumerate(drawn)]
    path = write(tmp_path / "d.parquet", rows)
    slow = arrow.read_parquet(path)
    next(slow)  # one picture of a batch is written, or all of them: then the other one is done
    other = read(path)
    (whole,) = {c.images[0].source for c in other}
    list(slow)
    assert Path(whole).stat().st_size == sum(len(b) for b, _ in drawn)
    assert pixels(other) == [[p] for _, p in drawn]


def test_numbers_stay_numbers_in_a_json_answer(tmp_path):
    table = pa.table({"n": [1, None], "x": [1.5, None], "s": ["ä", ""], "ok": [True, None]})
    pq.write_table(table, tmp_path / "d.parquet")
    recipe = Recipe(prompt="q", target={"json": ["n", "x", "s", "ok"]})
    first, second = (c.messages[-1].text for c in read(tmp_path / "d.parquet", recipe=recipe))
    assert first == '{"n": 1, "x": 1.5, "s": "ä", "ok": true}'
    assert set(json.loads(second).values()) == {None}


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.95])
def test_a_cut_file_is_refused_in_one_line_and_leaves_nothing_behind(tmp_path, cache, drawn, keep):
    path = write(tmp_path / "d.parquet", [row(b, n) for n, (b, _) in enumerate(drawn)])
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"d\.parquet cannot be read as Parquet") as caught:
        read(path, on_error=lambda error: None)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)
    assert stores(cache) == []


def test_damage_after_the_first_pictures_leaves_nothing_behind(tmp_path, cache):
    noise = [Pillow.effect_noise((40, 40), 90).tobytes() for _ in range(600)]
    settings = {"row_group_size": 200, "compression": "gzip", "use_dictionary": False}
    path = write(tmp_path / "d.parquet", [row(b, n) for n, b in enumerate(noise)], **settings)
    content = bytearray(path.read_bytes())
    at = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content[at + 100 : at + 5000] = bytes(4900)
    path.write_bytes(content)
    rows = arrow.read_parquet(path)
    next(rows)
    assert len(stores(cache)) == 1
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        list(rows)
    assert stores(cache) == []


def test_a_record_that_stops_the_reading_leaves_nothing_behind(tmp_path, cache, drawn):
    path = write(tmp_path / "d.parquet", [row(drawn[0][0]), row(drawn[1][0], 1, answer="")])
    with pytest.raises(UserError, match=r"d\.parquet row 1: an empty answer"):
        read(path)
    assert stores(cache) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, drawn, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLMPEFT_CACHE", str(tmp_path / "file"))
    path = write(tmp_path / "d.parquet", [row(drawn[0][0])])
    with pytest.raises(UserError, match=r"cannot be put into .*file/pictures: .*VLMPEFT_CACHE"):
        read(path)


def test_messages_with_pictures_inside_and_the_nulls_of_arrow(tmp_path, drawn):
    def chat(*parts):
        return [
            {"role": "user", "content": list(parts), "weight": None},
            {"role": "assistant", "content": [{"type": "text", "text": "that"}], "weight": 1},
        ]

    picture = {"type": "image", "image": as_struct(drawn[0][0])}
    rows = [
        {"messages": chat(picture, {"type": "text", "text": "what?"}), "images": None},
        {"messages": chat({"type": "text", "text": "and <image>?"}), "images": [as_struct(drawn[1][0])]},
        {"messages": chat({"type": "image"}, {"type": "text", "text": "?"}), "images": [as_struct(drawn[2][0])]},
    ]  # fmt: skip
    found = read(write(tmp_path / "d.parquet", rows))
    assert pixels(found) == [[drawn[n][1]] for n in range(3)]
    assert [[m.text for m in c.messages] for c in found] == [
        ["what?", "that"],
        ["and ?", "that"],
        ["?", "that"],
    ]
    assert found[0].extra == {}


def answers(conversations):
    return [c.messages[-1].text for c in conversations]


@pytest.mark.parametrize(
    "layout",
    [
        "data/{}-00000-of-00001.parquet",
        "{}.parquet",
        "default/{}/0000.parquet",
        "{}/part-0.parquet",
    ],
)
def test_a_split_is_found_in_every_layout_of_the_hub(tmp_path, layout):
    for name in ("train", "validation", "test"):
        write(tmp_path / "set" / layout.format(name), [row(None, answer=name)])
    write(tmp_path / "set" / ".cache" / layout.format("train"), [row(None, answer="hidden")])
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert answers(read(tmp_path / "set", split)) == [name]


def test_all_shards_of_a_split_are_read_in_order(tmp_path):
    for n in range(3):
        write(tmp_path / f"data/train-0000{n}-of-00003.parquet", [row(None, answer=f"{n}")])
    assert answers(read(tmp_path)) == ["0", "1", "2"]


@pytest.mark.parametrize("saved", [False, True])
def test_train_is_never_taken_for_val_or_test(tmp_path, saved):
    rows = [row(None)]
    if saved:
        datasets = pytest.importorskip("datasets")
        one = datasets.Dataset.from_list(rows)
        datasets.DatasetDict({"train": one}).save_to_disk(str(tmp_path / "set"))
    else:
        write(tmp_path / "set/data/train-00000-of-00001.parquet", rows)
    assert answers(read(tmp_path / "set")) == ["a"]
    for split in ("val", "test"):
        with pytest.raises(UserError, match=f"has no {split} split; it has train; .* a share"):
            read(tmp_path / "set", split)


def test_a_split_of_another_name_alone_is_taken(tmp_path):
    write(tmp_path / "data/test-00000-of-00001.parquet", [row(None)])
    assert answers(read(tmp_path, "val")) == ["a"]


def test_folders_that_datasets_saves(tmp_path, cache, drawn):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), question=datasets.Value("string"), answer=datasets.Value("string")
    )
    rows = [{"image": as_struct(b), "question": "q", "answer": "a"} for b, _ in drawn]
    one = datasets.Dataset.from_list([*rows, rows[0]], features=features)
    one.save_to_disk(str(tmp_path / "one"))
    found = read(tmp_path / "one", "test")
    assert pixels(found) == [[p] for _, p in [*drawn, drawn[0]]]
    assert read(tmp_path / "one") == found
    assert len(stores(cache)) == 1
    parts = {"train": [0, 1], "validation": [2], "test": [3]}
    both = datasets.DatasetDict({name: one.select(chosen) for name, chosen in parts.items()})
    both.save_to_disk(str(tmp_path / "both"))
    for split, chosen in zip(("train", "val", "test"), parts.values(), strict=True):
        assert pixels(read(tmp_path / "both", split)) == [[drawn[n][1]] for n in chosen]
    both.pop("test")
    both.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UserError, match="two has no test split; it has train, validation"):
        read(tmp_path / "two", "test")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"features": 3}', b"\0" * 40, None])
def test_a_damaged_folder_of_datasets_is_refused_in_one_line(tmp_path, name, content):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([row(None)]).save_to_disk(str(tmp_path / "one"))
    path = tmp_path / "one" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        assert answers(read(tmp_path / "one")) == ["a"]  # the features are in the data as well
    except UserError as error:
        text = " ".join(str(error).split())
        assert "one" in text
        assert len(text) < 700
    else:
        assert name == "dataset_info.json"


def test_a_folder_without_any_data_set_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds neither a saved data set .* nor Parquet files"):
        read(tmp_path)


def test_binary_text_is_refused_instead_of_learnt(tmp_path):
    path = write(tmp_path / "d.parquet", [row(None, question=b"what?")])
    with pytest.raises(UserError, match="row 0: column 'question' holds bytes, not text"):
        read(path)


def test_images_carry_the_name_that_the_data_gives_them(tmp_path, drawn):
    path = write(tmp_path / "d.parquet", [row(as_struct(drawn[0][0]))])
    (image,) = read(path)[0].images
    assert image.label == "x.png"
    assert image == Image(image.source, 0, len(drawn[0][0]))


def test_class_labels_are_their_names(tmp_path):
    """`datasets` keeps classes as numbers, with their names in the metadata."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"question": Value("string"), "answer": ClassLabel(names=["nut", "bolt"])})
    data = Dataset.from_dict({"question": ["a?", "b?"], "answer": [1, 0]}, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "d.parquet"))
    for path in (tmp_path / "saved", tmp_path / "d.parquet"):
        found = read_conversations(str(path), None, _raise)
        assert [c.messages[-1].text for c in found] == ["bolt", "nut"]
