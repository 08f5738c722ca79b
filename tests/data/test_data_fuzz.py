"""Whatever a data file holds, it is read, or refused in one line that says where; skipping is counted."""

import base64
import copy
import csv
import io
import json
import random
import tarfile

import pytest
from PIL import Image as Pillow

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.datamodule import VLMData
from vlmpeft.runtime.errors import UserError

from ..conftest import llava, vlmpeft
from .test_data_shapes import call


def nested(value, depth):
    """The value that many times inside of its kind."""
    for _ in range(depth):
        value = [value] if isinstance(value, list) else {"answer": value}
    return value


NONSENSE = (
    None,
    7,
    -1.5,
    True,
    "",
    " ",
    [],
    {},
    [[]],
    {"a": {"b": []}},
    "\x00",
    "\ud800",
    [None],
    "x" * 50,
    float("nan"),
    float("inf"),
    10**400,
    nested({}, 900),
    nested([], 900),
    ["a.png", "a.png"],
    {"bytes": None, "path": "a.png"},
    "data:image/png;base64,AAAA",
    "data:",
    "..",
    "<image>",
    "{a}",
    "[1",
    '["a"]',
)


@pytest.fixture(scope="module")
def processor():
    return load_processor(BaseSpec())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a picture and one intact file of every kind: suffix -> bytes."""
    folder = tmp_path_factory.mktemp("good")
    Pillow.new("RGB", (64, 64), "red").save(folder / "a.png")
    picture = (folder / "a.png").read_bytes()
    return folder, {
        ".json": json.dumps([llava(), llava(id="x")]).encode(),
        ".jsonl": "\n".join([json.dumps(llava()), json.dumps(messages(picture))]).encode(),
        ".csv": table(","),
        ".tsv": table("\t"),
        ".parquet": parquet(picture),
        ".tar": shard(picture),
    }


def messages(picture=None):
    """An OpenAI-style record; the picture as a data URI."""
    uri = "data:image/png;base64," + base64.b64encode(picture or b"").decode()
    content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "what?"}]
    if picture is None:
        content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "what?"}]
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "that"}]
    }


def table(separator):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerows(
        [["image", "question", "answer"], ["a.png", "what?", "that"], ["a.png", "q", "a"]]
    )
    return text.getvalue().encode()


def parquet(picture):
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {
        "image": {"bytes": picture, "path": "a.png"},
        "question": "what?",
        "answers": ["a", "b", "a"],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row, row]), buffer)
    return buffer.getvalue()


def shard(picture):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(2):
            fields = json.dumps({"question": "what?", "answer": "that"}).encode()
            for name, content in ((f"{number}.png", picture), (f"{number}.json", fields)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def broken_bytes(content, rng):
    """The content cut, with bytes flipped, with a hole, doubled, or replaced."""
    at, length = rng.randrange(len(content)), rng.randrange(1, 40)
    return rng.choice(
        (
            content[:at],
            content[:at]
            + bytes(b ^ 0xFF for b in content[at : at + length])
            + content[at + length :],
            content[:at] + bytes(length) + content[at + length :],
            content[:at] + rng.randbytes(length) + content[at + length :],
            content + content[:at],
            rng.randbytes(length),
        )
    )


def paths(value, path=()):
    """Where a record's values are."""
    yield path
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        yield from paths(child, (*path, key))


def with_value(record, path, value):
    """The record with another value at a path."""
    if not path:
        return value
    changed = copy.deepcopy(record)
    owner = changed
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    return changed


def row_records():
    return {
        "image": "a.png",
        "question": "what?",
        "answers": ["a", "b"],
        "system": "s",
        "id": "1",
        "choices": ["a"],
    }


RECORDS = [llava(id="x", references=["gear"]), messages(), row_records()]


def assert_one_line(error, file):
    text = " ".join(str(error).split())
    assert 0 < len(text) < 1000, text
    assert "Traceback" not in text
    assert file.name in text or "cannot be read" in text, text


def outcome(processor, file, on_error):
    """Prepare a file; "read", "skipped" or "refused", after checking how it was refused."""
    data = VLMData(train=str(file), image_dir=str(file.parent), on_error=on_error)
    try:
        data.prepare(processor, splits=("train",))
    except UserError as error:
        assert_one_line(error, file)
        return "refused"
    for line in data.skipped:
        assert_one_line(line, file)
    assert len(data.dataset("train")) > 0
    return "skipped" if data.skipped else "read"


def test_intact_files_are_read(good, processor):
    folder, contents = good
    for suffix, content in contents.items():
        file = folder / f"intact{suffix}"
        file.write_bytes(content)
        assert outcome(processor, file, "error") == "read", suffix


def test_two_hundred_and_more_broken_files_are_read_refused_or_skipped(good, processor):
    folder, contents = good
    rng, outcomes = random.Random(0), []
    for suffix, content in contents.items():
        for number in range(25):
            file = folder / f"broken{number}{suffix}"
            file.write_bytes(broken_bytes(content, rng))
            outcomes += [outcome(processor, file, mode) for mode in ("error", "skip")]
        for number, other in enumerate(
            contents.values()
        ):  # the content of another kind, empty, text
            file = folder / f"other{number}{suffix}"
            file.write_bytes(other if number else b"")
            outcomes += [outcome(processor, file, mode) for mode in ("error", "skip")]
    assert len(outcomes) >= 200
    assert outcomes.count("refused") > 100


def test_two_hundred_and_more_broken_records_are_refused_or_skipped(good, processor):
    folder, _ = good
    cases = [
        with_value(record, path, value)
        for record in RECORDS
        for path in paths(record)
        for value in NONSENSE
    ]
    random.Random(1).shuffle(cases)
    file, outcomes = folder / "records.json", []
    for case in cases[:600]:
        file.write_text(json.dumps([llava(), case]))
        strict, lenient = (outcome(processor, file, mode) for mode in ("error", "skip"))
        assert (strict == "refused") == (lenient == "skipped"), case
        outcomes.append(strict)
    assert len(outcomes) >= 200
    assert outcomes.count("refused") > 100
    assert outcomes.count("read") > 20


def test_broken_pictures_are_refused_or_skipped(good, processor):
    folder, _ = good
    rng, outcomes = random.Random(2), []
    file = folder / "pictures.json"
    for number in range(60):
        suffix = rng.choice((".png", ".jpg", ".gif", ".bmp", ".tiff", ".webp"))
        path = folder / f"p{number}{suffix}"
        Pillow.effect_noise((40, 30), 60).convert("RGB").save(path)
        path.write_bytes(broken_bytes(path.read_bytes(), rng))
        file.write_text(json.dumps([llava(), llava(image=path.name)]))
        strict, lenient = (outcome(processor, file, mode) for mode in ("error", "skip"))
        assert (strict == "refused") == (lenient == "skipped"), path
        outcomes.append(strict)
    assert outcomes.count("refused") > 10


def test_data_uris_are_read_or_skipped(good, processor):
    folder, _ = good
    picture, rng, outcomes = (folder / "a.png").read_bytes(), random.Random(3), []
    file = folder / "uris.jsonl"
    for _ in range(60):
        broken = rng.random() < 0.7
        record = messages(broken_bytes(picture, rng) if broken else picture)
        part = record["messages"][0]["content"][0]["image_url"]
        if rng.random() < 0.5:
            uri = part["url"].encode()
            part["url"] = broken_bytes(uri, rng).decode("latin-1")
        file.write_text(json.dumps(llava()) + "\n" + json.dumps(record))
        strict, lenient = (outcome(processor, file, mode) for mode in ("error", "skip"))
        assert (strict == "refused") == (lenient == "skipped"), part
        outcomes.append(strict)
    assert outcomes.count("refused") > 20
    assert outcomes.count("read") > 5


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_cells_of_tables_are_read_or_skipped(good, processor, suffix):
    folder, _ = good
    file, outcomes = folder / f"cells{suffix}", []
    row = {name: str(value) for name, value in row_records().items()}
    for column in row:
        for value in filter(is_text, NONSENSE):
            with file.open("w", newline="", encoding="utf-8") as opened:
                writer = csv.DictWriter(
                    opened, list(row), delimiter="\t" if suffix == ".tsv" else ","
                )
                writer.writeheader()
                writer.writerows([row, row | {column: value}])
            strict, lenient = (outcome(processor, file, mode) for mode in ("error", "skip"))
            assert (strict == "refused") == (lenient == "skipped"), (column, value)
            outcomes.append(strict)
    assert len(outcomes) > 40
    assert {"refused", "read"} == set(outcomes)


def is_text(value):
    return isinstance(value, str) and value not in (
        "\ud800",
        "\x00",
    )  # which no file in UTF-8 holds


def test_missing_files_and_folders_are_refused(good, processor):
    folder, _ = good
    (folder / "empty").mkdir()
    for suffix in (".json", ".csv", ".parquet", ".tar"):
        (folder / f"folder{suffix}").mkdir()
        assert outcome(processor, folder / f"folder{suffix}", "skip") == "refused"
    for name in ("gone.json", "gone/*.tar", "empty", "gone.parquet", "[.csv"):
        assert outcome(processor, folder / name, "skip") == "refused"


def cut(content):
    return content[: len(content) // 3]


BROKEN_FOR_USERS = {
    "cut.json": lambda contents: cut(contents[".json"]),
    "cut.parquet": lambda contents: cut(contents[".parquet"]),
    "cut.tar": lambda contents: cut(contents[".tar"]),
    "quote.csv": lambda contents: contents[".csv"] + b'"',
    "other.jsonl": lambda contents: contents[".parquet"],
    "fields.json": lambda contents: json.dumps([llava(), {"image": "a.png"}]).encode(),
    "picture.json": lambda contents: json.dumps([llava(image="gone.png")]).encode(),
}


def fit(file):
    return ["fit", f"--data.train={file}", "--model.plan.language=LoRA"]


def assert_refused(stderr, folder, name):
    (line,) = [line for line in stderr.splitlines() if not line.startswith("config: ")]
    assert line.startswith("vlmpeft: ")
    assert name in line
    assert not (folder / "runs" / "fit").exists()


@pytest.mark.parametrize("name", BROKEN_FOR_USERS)
def test_a_broken_file_is_one_line_and_exit_code_2(good, tmp_path, monkeypatch, capsys, name):
    _, contents = good
    (tmp_path / name).write_bytes(BROKEN_FOR_USERS[name](contents))
    monkeypatch.chdir(tmp_path)
    assert call(*fit(tmp_path / name)) == 2
    assert_refused(capsys.readouterr().err, tmp_path, name)


@pytest.mark.slow  # the same in this process is above
@pytest.mark.parametrize("name", ["cut.json", "cut.parquet"])
def test_a_broken_file_is_one_line_for_the_user_of_the_command_line(good, tmp_path, name):
    _, contents = good
    (tmp_path / name).write_bytes(BROKEN_FOR_USERS[name](contents))
    assert_refused(vlmpeft(*fit(tmp_path / name), cwd=tmp_path, check=2).stderr, tmp_path, name)
