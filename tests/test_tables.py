"""Tables become conversations: separators, columns, templates, answers, pictures as paths and bytes."""

import io
import json
import tarfile

import pytest
from PIL import Image as Pillow

from vlmpeft.data.conversation import Image
from vlmpeft.data.images import open_image
from vlmpeft.data.rows import Columns, Recipe
from vlmpeft.data.sources import Source, as_sources, read_conversations
from vlmpeft.errors import UserError


def _raise(error):
    raise error


def read(path, recipe=None, split="train"):
    return read_conversations(str(path), None, _raise, recipe or Recipe(), split)


def texts(conversation):
    return [message.text for message in conversation.messages]


@pytest.mark.parametrize(
    ("name", "separator", "encoding"),
    [
        ("a.csv", ",", "utf-8"),
        ("a.csv", ";", "utf-8-sig"),
        ("a.csv", "\t", "utf-8"),
        ("a.csv", "|", "utf-16"),
        ("a.tsv", "\t", "utf-8"),
    ],
)
def test_separators_and_encodings_are_recognised(tmp_path, name, separator, encoding):
    lines = [["question", "answer"], ["wie groß?", "klein"], ["zwei", '"x\ny"']]
    (tmp_path / name).write_text("\n".join(map(separator.join, lines)), encoding=encoding)
    assert [texts(c) for c in read(tmp_path / name)] == [["wie groß?", "klein"], ["zwei", "x\ny"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("question,,answer\n1,2,3", "a.csv:1: a column has no name"),
        ("answer,question,answer\n1,2,3", "a.csv:1: column 'answer' is there twice"),
        ("question,answer\na,b\nc\n", "a.csv:3: 1 cells, but the header has 2"),
        ('question,answer\n"a,b\n', "a.csv:2: not a valid table"),
        ("question,answer\n", "holds no usable conversation"),
        (
            "photo,answer\na,b\n",
            "no question: give data.prompt or data.columns.prompt; .* photo, answer",
        ),
        ("question,colour\na,b\n", "no answer: give data.target or data.columns.answers"),
    ],
)
def test_broken_tables_name_file_line_and_next_move(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.csv")


def test_a_data_uri_of_any_length_fits_into_a_cell(tmp_path):
    uri = "data:image/png;base64," + "A" * 200_000
    (tmp_path / "a.csv").write_text(f'image,question,answer\n"{uri}",q,a\n')
    (one,) = read(tmp_path / "a.csv")
    assert one.images == (Image(uri),)


ROW = {"photo": "a.jpg", "side": "b.jpg", "brand": "Acme", "colour": "", "size": 4, "sku": "s1"}


def convert(recipe, row=None):
    from pathlib import Path

    return recipe.conversation(ROW if row is None else row, "t.csv:2", Path("/pics"))


def test_columns_templates_and_json_targets(tmp_path):
    recipe = Recipe(
        Columns(image=["photo", "side"], id="sku"),
        "Describe this {brand} {{item}}.",
        {"json": ["brand", "colour", "size"]},
    )
    one = convert(recipe)
    assert one.id == "s1"
    assert one.images == (Image("/pics/a.jpg"), Image("/pics/b.jpg"))
    assert texts(one) == [
        "Describe this Acme {item}.",
        '{"brand": "Acme", "colour": null, "size": 4}',
    ]
    assert one.extra["brand"] == "Acme"
    named = convert(Recipe(prompt="q", target={"json": {"Marke": "brand"}}))
    assert json.loads(named.messages[-1].text) == {"Marke": "Acme"}
    assert texts(convert(Recipe(prompt="q", target="{brand}, {size}"))) == ["q", "Acme, 4"]


def test_image_marks_in_a_template_place_the_pictures():
    recipe = Recipe(Columns(image="photo"), "is this <image> it?", "{brand}")
    assert convert(recipe).messages[0].parts == ("is this ", Image("/pics/a.jpg"), " it?")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            Recipe(prompt="{brnd}", target="x"),
            "data.prompt: there is no column 'brnd'. Did you mean brand",
        ),
        (Recipe(prompt="{brand.__class__}", target="x"), r"no column 'brand.__class__'"),
        (Recipe(prompt="{0}", target="x"), "no column '0'"),
        (Recipe(prompt="{brand", target="x"), "a brace itself is written twice"),
        (Recipe(prompt="q", target={"json": ["colr"]}), "data.target: there is no column 'colr'"),
        (Recipe(Columns(image="foto"), "q", "x"), "data.columns.image: there is no column 'foto'"),
        (Recipe(Columns(answers="ref"), "q"), "data.columns.answers: there is no column 'ref'"),
        (Recipe(Columns(image="photo"), "<image> <image>", "x"), "more <image> in the text"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(recipe, message):
    with pytest.raises(UserError, match=message):
        convert(recipe)


def test_the_most_frequent_of_ten_answers_is_learnt_and_all_are_accepted():
    said = ["red"] * 3 + ["dark red"] * 5 + ["brown"] * 2
    row = {"question": "colour?", "answers": [{"answer": text} for text in said]}
    (_, answer) = convert(Recipe(), row).messages
    assert answer.text == "dark red"
    assert answer.references == tuple(said)
    cell = {"question": "colour?", "answers": json.dumps(said)}
    assert convert(Recipe(), cell).messages[-1] == answer


def test_an_answer_may_be_a_position_among_the_choices():
    row = {"question": "which?", "choices": ["bolt", "nut"], "answer": 1, "system": "Be brief."}
    one = convert(Recipe(), row)
    assert texts(one) == ["Be brief.", "which?", "nut"]
    assert one.extra["choices"] == ["bolt", "nut"]


def test_a_row_without_a_picture_is_text():
    row = {"image": None, "question": "q", "answer": "a"}
    assert convert(Recipe(), row).images == ()


def test_sources_take_paths_and_settings_and_refuse_what_they_do_not_know():
    two = as_sources(["a.json", {"path": "b.csv", "weight": 2, "columns": {"image": "photo"}}])
    assert two == [Source("a.json"), Source("b.csv", 2, columns=Columns(image="photo"))]
    for wrong, message in (
        ({"path": "a", "wieght": 2}, "Did you mean weight"),
        ({"weight": 2}, "needs a path"),
        ({"path": "a", "weight": 0}, "above 0"),
        ({"path": "a", "columns": {"imag": "x"}}, "Did you mean image"),
        ({"path": "a", "target": {"jsn": ["x"]}}, "data.target is a template"),
    ):
        with pytest.raises(UserError, match=message):
            as_sources([wrong])


@pytest.fixture
def shown():
    """Three pictures as (bytes, pixels)."""
    found = []
    for number in range(3):
        picture = Pillow.effect_noise((20, 10 + number), 80).convert("RGB")
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        found.append((buffer.getvalue(), picture.tobytes()))
    return found


def pixels(conversation):
    return [open_image(image).tobytes() for image in conversation.images]


def write_parquet(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_parquet_bytes_are_the_same_pictures_stored_once(tmp_path, shown):
    rows = [
        {"image": [{"bytes": content, "path": None}], "question": f"q{n}", "answer": "a", "n": n}
        for n, (content, _) in enumerate([*shown, shown[0]])
    ]
    write_parquet(tmp_path / "d.parquet", rows)
    conversations = read(tmp_path / "d.parquet")
    assert [pixels(c) for c in conversations] == [[p] for _, p in [*shown, shown[0]]]
    assert conversations[0].images == conversations[3].images
    assert len({c.images for c in conversations}) == 3
    assert read(tmp_path / "d.parquet") == conversations
    assert conversations[2].extra["n"] == 2


def test_plain_bytes_and_nulls_of_arrow(tmp_path, shown):
    text = {"type": "text", "text": "what?", "image": None}
    picture = {"type": "image", "text": None, "image": shown[1][0]}
    turns = [
        {"role": "user", "content": [picture, text]},
        {"role": "assistant", "content": [{"type": "text", "text": "that", "image": None}]},
    ]
    write_parquet(
        tmp_path / "d.parquet", [{"messages": turns}, {"messages": turns[:1] + turns[1:]}]
    )
    one, _ = read(tmp_path / "d.parquet")
    assert pixels(one) == [shown[1][1]]
    assert texts(one) == ["what?", "that"]


def test_a_cut_parquet_file_leaves_no_store_behind(tmp_path, shown, monkeypatch):
    monkeypatch.setenv("VLMPEFT_CACHE", str(tmp_path / "cache"))
    write_parquet(tmp_path / "d.parquet", [{"image": shown[0][0], "question": "q", "answer": "a"}])
    whole = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"d\.parquet cannot be read as Parquet"):
        read(tmp_path / "d.parquet")
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_a_hub_folder_gives_the_split_that_is_asked_for(tmp_path):
    for name, answer in (("train", "a"), ("validation", "b"), ("test", "c")):
        write_parquet(
            tmp_path / f"data/{name}-00000-of-00001.parquet", [{"question": "q", "answer": answer}]
        )
    assert [texts(read(tmp_path, split=s)[0])[1] for s in ("train", "val", "test")] == [
        "a",
        "b",
        "c",
    ]
    (tmp_path / "data/validation-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match="has no val split; it has test, train"):
        read(tmp_path, split="val")


def test_folders_saved_by_datasets(tmp_path, shown):
    from datasets import Dataset, DatasetDict

    rows = [{"image": {"bytes": b, "path": None}, "question": "q", "answer": "a"} for b, _ in shown]
    one = Dataset.from_list(rows)
    one.save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": one, "validation": one.select([2])}).save_to_disk(str(tmp_path / "both"))
    assert [pixels(c) for c in read(tmp_path / "one")] == [[p] for _, p in shown]
    assert [pixels(c) for c in read(tmp_path / "both", split="val")] == [[shown[2][1]]]
    with pytest.raises(UserError, match="has no test split"):
        read(tmp_path / "both", split="test")


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_shards_are_read_where_they_are(tmp_path, shown):
    fields = json.dumps({"question": "same?", "answer": "no", "kind": "k"}).encode()
    chat = json.dumps({"messages": [
        {"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "that"},
    ]}).encode()  # fmt: skip
    write_shard(
        tmp_path / "0.tar",
        [("d/1.left.png", shown[0][0]), ("d/1.right.png", shown[1][0]), ("d/1.json", fields)],
    )
    write_shard(tmp_path / "1.tar", [("2.json", chat), ("2.png", shown[2][0])])
    two, one = read(tmp_path / "*.tar")
    assert (two.id, one.id) == ("d/1", "2")
    assert pixels(two) == [shown[0][1], shown[1][1]]
    assert two.extra["kind"] == "k"
    assert pixels(one) == [shown[2][1]]
    assert two.images[0].source == str(tmp_path / "0.tar")


def test_compressed_and_cut_shards_are_refused(tmp_path, shown):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.txt"), io.BytesIO())
    with pytest.raises(UserError, match=r"a\.tar\.gz cannot .* unpack a \.tar\.gz first"):
        read(tmp_path / "a.tar.gz")
    write_shard(tmp_path / "b.tar", [("1.json", b'{"question": "q", "answer": "a"}' * 50)])
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:700])
    with pytest.raises(UserError, match=r"b\.tar"):
        read(tmp_path / "b.tar")
