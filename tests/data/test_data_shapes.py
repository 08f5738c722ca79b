"""Data in the shapes people have it: each goes through `data check` and `fit`."""

import base64
import csv
import io
import itertools
import json
import random

import pytest

from vlmpeft.data.workbench.scene import PLACES, draw_scene, random_scene
from vlmpeft.runtime.records import read_items, read_record

from ..conftest import call

FIT = [
    "--model.plan.language=LoRA",
    "--trainer.max_epochs=2",
    "--model.base.bits.language=fp32",
    "--data.batch_size=8",
]


def scenes(number, seed=0):
    """Scenes of the workbench with their pictures."""
    rng = random.Random(seed)
    drawn = [random_scene(rng, "train") for _ in range(number)]
    return [(scene, draw_scene(scene)) for scene in drawn]


def first_part(scene):
    """(place, part) of the first that is there."""
    return next((place, part) for place, part in zip(PLACES, scene.parts, strict=True) if part)


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def products_csv(folder):
    """A retailer's table: photo, category, attributes; a cell is empty, one photo is there twice."""
    (folder / "photos").mkdir()
    with (folder / "products.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["sku", "photo", "category", "brand", "colour"])
        for n, (scene, picture) in enumerate(scenes(24)):
            _, part = first_part(scene)
            picture.save(folder / "photos" / f"{n}.jpg", quality=90)
            brand = "" if n == 3 else f"brand {n % 3}"
            writer.writerow([f"sku-{n}", f"photos/{n}.jpg", part.name, brand, part.colour])
    return [
        f"--data.train={folder / 'products.csv'}",
        "--data.val=0.25",
        "--data.columns={image: photo, id: sku}",
        "--data.prompt=which {category} is it? as json.",
        "--data.target={json: [brand, colour]}",
        "--model.metrics=[{class_path: JsonFields, init_args: {schema: "
        + str(schema(folder))
        + "}}]",
        "--data.group_by=category",
    ]


def schema(folder):
    path = folder / "attrs.schema.json"
    properties = {"brand": {"type": ["string", "null"]}, "colour": {"type": "string"}}
    content = {"type": "object", "properties": properties, "required": ["brand", "colour"]}
    path.write_text(json.dumps(content))
    return path


def vqa_parquet(folder):
    """Image bytes and ten annotators' answers a question, as VQA data comes from the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for n, (scene, picture) in enumerate(scenes(20, 1)):
        _, part = first_part(scene)
        said = [part.colour] * 7 + ["grey", "dark", part.colour]
        answers = [{"answer": answer, "answer_id": i} for i, answer in enumerate(said)]
        image = {"bytes": png(picture), "path": f"{n}.png"}
        rows.append({"image": image, "question": "what colour is it?", "answers": answers})
    (folder / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:16]), folder / "data/train-00000-of-00001.parquet")
    pq.write_table(
        pa.Table.from_pylist(rows[16:]), folder / "data/validation-00000-of-00001.parquet"
    )
    return [
        f"--data.train={folder}",
        f"--data.val={folder}",
        "--model.metrics=[VqaAccuracy, ExactMatch]",
    ]


def llava_multi_turn(folder):
    """Several questions about a picture in one conversation, with a system prompt and a turn of context."""
    records = []
    for n, (scene, picture) in enumerate(scenes(20, 2)):
        picture.save(folder / f"{n}.png")
        place, part = first_part(scene)
        turns = [
            ("system", "answer briefly."),
            ("human", f"<image>\nwhat part is at the {place}?"),
            ("gpt", part.name),
            ("human", "what colour is it?"),
            ("gpt", part.colour),
        ]
        conversations = [{"from": who, "value": text} for who, text in turns]
        if n % 4 == 0:
            conversations[2]["loss"] = False
        records.append({"id": str(n), "image": f"{n}.png", "conversations": conversations})
    (folder / "train.json").write_text(json.dumps(records))
    return [f"--data.train={folder / 'train.json'}", "--data.val=0.2", "--data.test=0.2"]


def messages_jsonl(folder):
    """OpenAI-style messages with data URIs, two images, and text alone among them."""
    lines = []
    drawn = scenes(20, 3)
    for n, ((scene, picture), (other, second)) in enumerate(itertools.pairwise(drawn)):
        uris = [
            "data:image/png;base64," + base64.b64encode(png(p)).decode() for p in (picture, second)
        ]
        parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
        parts.append({"type": "text", "text": "the same number of parts?", "image_url": None})
        answer = "yes" if scene.parts.count(None) == other.parts.count(None) else "no"
        content = "what is two and two?" if n % 5 == 0 else parts
        answer = "four" if n % 5 == 0 else answer
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages, "n": n}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    return [
        f"--data.train={folder / 'train.jsonl'}",
        "--data.val=0.2",
        "--eval.controls=[blank]",
    ]


SHAPES = [products_csv, vqa_parquet, llava_multi_turn, messages_jsonl]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.__name__)
def shape(request, tmp_path):
    """(name, arguments) of a data set on disk."""
    return request.param.__name__, request.param(tmp_path)


def test_every_shape_goes_through_check_and_fit(shape, tmp_path, capsys):
    name, arguments = shape
    page = tmp_path / "page.html"
    assert call("data", "check", "--html", page, *arguments) == 0
    shown = capsys.readouterr().out
    assert "supervised tokens" in shown
    assert "<img" in page.read_text()
    assert call("fit", *arguments, *FIT, f"--runs_dir={tmp_path}", "--run_name=run") == 0
    record = read_record(tmp_path / "run")
    assert record["metrics"]["tuned"]["val"]["loss"] < record["metrics"]["base"]["val"]["loss"]
    CHECKS[name](record, read_items(tmp_path / "run" / "items.jsonl.gz"), tmp_path / "run")


def check_csv(record, items, run):
    assert "json_fields/parse_rate" in record["metrics"]["tuned"]["val"]
    assert record["groups"]["tuned"]["val"].keys() == {item["fields"]["category"] for item in items}
    assert json.loads(items[0]["expected"]).keys() == {"brand", "colour"}
    members = json.loads((run / "split.json").read_text())
    assert record["data"]["val"]["split"]["shares"] == {"val": 0.25}
    assert len(members["val"]) == 6
    assert not set(members["val"]) & set(members["train"])
    assert all(item["id"].startswith("sku-") for item in items)


def check_parquet(record, items, run):
    assert record["data"]["train"]["conversations"] == 16
    assert all(len(item["references"]) == 10 for item in items)
    for item in items:
        said = item["references"].count(item["generated"])
        assert (item["scores"]["vqa_accuracy"] == 1) == (said > 3)  # official: 3 of any 9
    assert record["primary"] == "vqa_accuracy"


def check_llava(record, items, run):
    assert {split: entry["conversations"] for split, entry in record["data"].items()} == {
        "train": 12,
        "val": 4,
        "test": 4,
    }
    assert record["metrics"]["tuned"].keys() == {"val", "test"}


def check_messages(record, items, run):
    assert {len(item["image"]) for item in items} <= {0, 2}
    assert record["controls"].keys() == {"blank"}


CHECKS = {
    "products_csv": check_csv,
    "vqa_parquet": check_parquet,
    "llava_multi_turn": check_llava,
    "messages_jsonl": check_messages,
}
