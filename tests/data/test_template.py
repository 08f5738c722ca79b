"""`data template`: records to be filled in for each picture and question; what was there stays."""

import json
import shlex

import pytest
from PIL import Image as Pillow

from vlmpeft.cli.verbs import DATA
from vlmpeft.data.formats.sources import read_conversations
from vlmpeft.data.template import PLACEHOLDER, QUESTIONS, count_placeholders, write_template
from vlmpeft.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Pictures with right, wrong and no suffix, in sub-folders; and files that are none."""
    root = tmp_path / "my pictures"
    for name, kind in (("b.png", "PNG"), ("sub/a.jpg", "JPEG"), ("plain", "PNG"), ("c.txt", "GIF")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (8, 8), "red").save(root / name, kind)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes((root / "b.png").read_bytes())
    (root / ".cache").mkdir()
    (root / ".cache" / "d.png").write_bytes((root / "b.png").read_bytes())
    return root


PICTURES = ["b.png", "c.txt", "plain", "sub/a.jpg"]


def _raise(error):
    raise error


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_one_record_for_each_picture_and_question(folder, tmp_path):
    out = tmp_path / "data.json"
    count = write_template(folder, out, list(QUESTIONS))
    assert (count.pictures, count.added, count.kept, count.waiting) == (4, 12, 0, 12)
    assert (count.skipped, count.unreadable) == (3, [])
    records = load(out)
    asked = [(r["image"], r["conversations"][0]["value"]) for r in records]
    assert asked == [(p, f"<image>\n{q}") for p in PICTURES for q in QUESTIONS]
    assert [r["id"] for r in records][-3:] == ["sub/a#1", "sub/a#2", "sub/a#3"]
    assert records[0] == {
        "id": "b#1",
        "image": "b.png",
        "conversations": [
            {"from": "human", "value": "<image>\nDescribe this picture."},
            {"from": "gpt", "value": "[ANNOTATE: what is shown, in one to three sentences]"},
        ],
    }
    assert len({r["conversations"][1]["value"] for r in records}) == len(QUESTIONS) == 3


def test_written_file_is_read_as_conversations_that_wait(folder, tmp_path):
    out = tmp_path / "data.json"
    write_template(folder, out, ["What colour is it?"])
    conversations = read_conversations(str(out), str(folder), _raise)
    assert [c.images[0].source for c in conversations] == [str(folder / p) for p in PICTURES]
    assert count_placeholders(conversations) == 4
    records = load(out)
    records[1]["conversations"][1]["value"] = "red"
    out.write_text(json.dumps(records))
    assert count_placeholders(read_conversations(str(out), str(folder), _raise)) == 3


def test_a_placeholder_that_is_asked_about_does_not_wait(folder, tmp_path):
    out = tmp_path / "data.json"
    write_template(folder, out, [f"What does {PLACEHOLDER} mean?"])
    text = out.read_text().replace("[ANNOTATE: the answer]", "to write here")
    out.write_text(text)
    assert PLACEHOLDER in text
    assert count_placeholders(read_conversations(str(out), str(folder), _raise)) == 0
    assert write_template(folder, out, [f"What does {PLACEHOLDER} mean?"]).waiting == 0


def test_existing_records_are_kept_and_only_missing_pairs_added(folder, tmp_path):
    out = tmp_path / "data.json"
    kept = [
        {
            "id": "b#1",
            "image": "./b.png",
            "conversations": [
                {"from": "human", "value": "what?\n<image>"},
                {"from": "gpt", "value": "a h\u00e9risson \u2713", "weight": 1.10},
            ],
            "kind": {"nested": [None, 10**30, "\ud800"]},
        },
        {"id": 7, "image": "gone.png", "conversations": [{"from": "human", "value": "old?"}]},
        {
            "messages": [
                {"role": "user", "content": "<image>what?"},
                {"role": "assistant", "content": [{"type": "text", "text": f"{PLACEHOLDER} x]"}]},
            ],
            "images": [str(folder / "plain"), {"path": "x"}],
        },
        "not even a record",
        {"image": 5, "conversations": "what?"},
    ]
    out.write_text(json.dumps(kept))
    count = write_template(folder, out, ["what?", "why?"])
    assert (count.added, count.kept, count.waiting) == (6, 5, 7)
    records = load(out)
    assert records[:5] == kept
    assert "h\u00e9risson" in out.read_text(encoding="utf-8")
    assert [(r["id"], r["image"]) for r in records[5:]] == [
        ("b#2", "b.png"),
        ("c#1", "c.txt"),
        ("c#2", "c.txt"),
        ("plain#1", "plain"),
        ("sub/a#1", "sub/a.jpg"),
        ("sub/a#2", "sub/a.jpg"),
    ]


def test_second_run_changes_no_byte(folder, tmp_path):
    out = tmp_path / "data.json"
    write_template(folder, out, ["what?"])
    out.write_text(json.dumps(load(out)))  # as an editor may lay it out
    before = out.read_bytes(), out.stat().st_mtime_ns
    count = write_template(folder, out, ["what?", " what? "])
    assert (count.added, count.kept, count.waiting) == (0, 4, 4)
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before


def test_names_stay_unique_when_pictures_share_their_stem(folder, tmp_path):
    (folder / "b.jpg").write_bytes((folder / "sub" / "a.jpg").read_bytes())
    out = tmp_path / "data.json"
    write_template(folder, out, ["what?", "why?"])
    names = [record["id"] for record in load(out)]
    assert len(set(names)) == len(names) == 10
    assert {"b#1", "b#2", "b#3", "b#4"} < set(names)


def test_file_names_that_are_not_utf8_survive(folder, tmp_path):
    (folder / "x\udce9.png").write_bytes((folder / "b.png").read_bytes())
    out = tmp_path / "data.json"
    assert write_template(folder, out, ["what?"]).added == 5
    assert "x\udce9.png" in [record["image"] for record in load(out)]
    assert write_template(folder, out, ["what?"]).added == 0


def test_broken_and_foreign_pictures_are_listed(folder, tmp_path):
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:45])
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    count = write_template(folder, tmp_path / "data.json", ["what?"])
    assert (count.pictures, count.skipped) == (4, 3)
    assert [line.split(" cannot be read")[0] for line in count.unreadable] == [
        f"image {folder / name}" for name in ("cut.png", "empty.jpg", "phone.heic")
    ]


@pytest.mark.parametrize("content", ["{}", '"text"', "", "[1,", "\xff", "[" * 100_000, "null"])
def test_out_that_is_no_list_is_left_untouched(folder, tmp_path, content):
    out = tmp_path / "data.json"
    out.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"data\.json .*left alone"):
        write_template(folder, out, ["what?"])
    assert out.read_bytes() == content.encode("latin-1")
    assert {*tmp_path.iterdir()} == {out, folder}


@pytest.mark.parametrize(
    ("name", "questions", "reason"),
    [
        ("data.json", [], "a question is empty"),
        ("data.json", ["what?", " "], "a question is empty"),
        ("data.json", ["<image> what?"], "holds <image>"),
        ("data.jsonl", ["what?"], "is a .json file"),
        ("my pictures/b.png/data.json", ["what?"], "cannot be read as JSON"),
    ],
)
def test_unusable_settings_are_refused(folder, tmp_path, name, questions, reason):
    with pytest.raises(UserError, match=reason):
        write_template(folder, tmp_path / name, questions)
    assert not (tmp_path / name).exists()


def test_no_folder_and_no_picture_are_refused(tmp_path):
    out = tmp_path / "data.json"
    with pytest.raises(UserError, match="nowhere is not a folder"):
        write_template(tmp_path / "nowhere", out, ["what?"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no readable picture below"):
        write_template(empty, out, ["what?"])
    (empty / "cut.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"no readable picture below .*cut\.png cannot be read"):
        write_template(empty, out, ["what?"])
    assert not out.exists()


def test_command_reports_counts_and_the_next_command(folder, tmp_path, capsys):
    for number in range(7):
        (folder / f"empty{number}.png").write_bytes(b"")
    out = tmp_path / "new" / "data.json"
    given = ["--image_dir", str(folder), "--out", str(out)]
    DATA["template"].call([*given, "--question", "what?", "why?", "--question", "who?"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: 4 pictures, 3 other files skipped"
    assert lines[1] == f"{out}: 12 records added, 0 kept"
    assert lines[2].startswith("12 answers still to be filled in")
    assert lines[3] == "7 pictures cannot be read:"
    assert [line.split("/")[-1].split()[0] for line in lines[4:9]] == [
        f"empty{number}.png" for number in range(5)
    ]
    assert shlex.split(lines[9])[-8:] == [
        *("-m", "vlmpeft", "data", "check"),
        *("--data.train", str(out), "--data.image_dir", str(folder)),
    ]
    assert len(lines) == 10
    DATA["template"].call(given)
    assert "12 records added, 12 kept" in capsys.readouterr().out


def test_mistakes_on_the_command_line_are_user_errors(folder):
    with pytest.raises(UserError, match=r"data template: .*out"):
        DATA["template"].call(["--image_dir", str(folder)])
    with pytest.raises(UserError, match="data template: unknown argument --seed"):
        DATA["template"].call(["--image_dir", str(folder), "--out", "x.json", "--seed", "1"])
