"""Broken input becomes one line that names value, place and next move."""

import base64
import json

import pytest

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.conversation import Image
from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.formats.rows import Recipe
from vlmpeft.data.formats.sources import read_conversations
from vlmpeft.data.images import open_image
from vlmpeft.runtime.errors import UserError

from ..conftest import llava, write_json


def _raise(error):
    raise error


def read(path, image_dir=None):
    return read_conversations(str(path), image_dir, _raise)


def test_llava_roles_and_placeholders(tmp_path):
    record = {
        "id": "x",
        "image": ["a.png", "b.png"],
        "kind": "compare",
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "<image>\n<image>\nsame?"},
            {"from": "gpt", "value": "no"},
        ],
    }
    (one,) = read(write_json(tmp_path / "d.json", [record]))
    assert [message.role for message in one.messages] == ["system", "user", "assistant"]
    assert one.messages[1].parts == (
        Image(str(tmp_path / "a.png")),
        Image(str(tmp_path / "b.png")),
        "same?",
    )
    assert one.extra == {"kind": "compare"}


def test_openai_messages_in_jsonl_with_null_keys_and_data_uri(tmp_path):
    uri = "data:image/png;base64," + base64.b64encode(b"x").decode()
    content = [
        {"type": "image_url", "image_url": {"url": uri}, "text": None},
        {"type": "text", "text": "what?", "image_url": None},
        {"type": "image", "image": "b.png"},
    ]
    record = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "that"}]
    }
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(record) + "\n\n" + json.dumps(record) + "\n")
    conversations = read(path, image_dir="/pics")
    assert len(conversations) == 2
    assert conversations[0].messages[0].parts == (Image(uri), "what?", Image("/pics/b.png"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": [{"from": "human", "value": "hi"}]}, "no assistant turn"),
        (llava(image="a.png", question="<image> again"), "more <image> in the text than images"),
        (llava(image=None) | {"image": "a.png"}, r"1 image\(s\) given but 0 <image>"),
        ({"text": "hi"}, "no 'conversations' and no 'messages'"),
        ({"conversations": [{"from": "robot", "value": "hi"}]}, "'robot'"),
        ({"conversations": [{"from": "gpt", "value": "hi"}]}, "there is no question"),
        ({"conversations": [{"from": "human", "value": 3}]}, "text or a list of parts"),
        (llava(answer=" "), "empty answer"),
        (llava(image="https://a.b/c.png"), "download it first"),
        (["not", "an", "object"], "an object, not list"),
    ],
)
def test_broken_record_names_file_record_and_reason(tmp_path, record, message):
    path = write_json(tmp_path / "d.json", [llava(), record])
    with pytest.raises(UserError, match=rf"d\.json record 1: .*{message}"):
        read(path)


def test_malformed_json_names_file_and_line(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('[\n {"id": 1},\n {"id" 2}\n]')
    with pytest.raises(UserError, match=r"d\.json:3: not valid JSON"):
        read(path)
    lines = tmp_path / "d.jsonl"
    lines.write_text(json.dumps(llava()) + "\n{oops\n")
    with pytest.raises(UserError, match=r"d\.jsonl:2: not valid JSON"):
        read(lines)


@pytest.mark.parametrize("content", ["[]", "{}", "", "42", '{"a": []}'])
def test_empty_or_strange_files_are_refused(tmp_path, content):
    path = tmp_path / "d.json"
    path.write_text(content)
    with pytest.raises(UserError):
        read(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nope\.json does not exist"):
        read(tmp_path / "nope.json")


def test_missing_truncated_and_unreadable_images_are_named(tmp_path, pictures):
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        open_image(Image(str(tmp_path / "gone.png")))
    broken = tmp_path / "broken.png"
    broken.write_bytes((pictures / "a.png").read_bytes()[:90])
    with pytest.raises(UserError, match=r"broken\.png cannot be read"):
        open_image(Image(str(broken)))
    text = tmp_path / "text.png"
    text.write_text("hello")
    with pytest.raises(UserError, match=r"text\.png cannot be read"):
        open_image(Image(str(text)))
    with pytest.raises(UserError, match="cannot be read"):
        open_image(Image("data:image/png;base64,!!!"))


def test_data_uri_is_the_same_picture(pictures):
    uri = "data:image/png;base64," + base64.b64encode((pictures / "b.png").read_bytes()).decode()
    assert open_image(Image(uri)).tobytes() == open_image(Image(str(pictures / "b.png"))).tobytes()


def _data(tmp_path, pictures, records, **settings):
    data = VLMData(
        train=write_json(tmp_path / "train.json", records), image_dir=str(pictures), **settings
    )
    data.prepare(load_processor(BaseSpec()), splits=("train",))
    return data


def test_skipping_counts_and_lists(tmp_path, pictures):
    records = [llava(), llava(image="gone.png"), {"text": "no"}, llava(answer="nut")]
    data = _data(tmp_path, pictures, records, on_error="skip")
    assert len(data.dataset("train")) == 2
    assert len(data.skipped) == 2
    assert any("gone.png" in line for line in data.skipped)


def test_over_length_is_an_error_that_names_the_conversation(tmp_path, pictures):
    records = [llava(), llava(id="long one", answer="gear " * 100)]
    with pytest.raises(UserError, match=r"long one has \d+ tokens, more than data.max_length=64"):
        _data(tmp_path, pictures, records, max_length=64)
    data = _data(tmp_path, pictures, records, max_length=64, over_length="drop")
    assert len(data.dataset("train")) == 1
    assert len(data.skipped) == 1


def test_nothing_left_is_an_error(tmp_path, pictures):
    with pytest.raises(UserError, match="no conversation is left"):
        _data(tmp_path, pictures, [llava(image="gone.png")], on_error="skip")


def test_answer_limit_is_the_longest_training_answer(tmp_path, pictures):
    data = _data(
        tmp_path, pictures, [llava(answer="gear"), llava(answer="a red gear at the top left")]
    )
    words = data.processor.tokenizer("a red gear at the top left").input_ids
    assert data.max_target_tokens == len(words) + 1


def test_lengths_count_image_tokens(tmp_path, pictures):
    data = _data(tmp_path, pictures, [llava("hi"), llava("hi", image=None)])
    first, second = data.lengths("train")
    assert first - second == 16


def test_content_hash_ignores_paths_but_not_pixels(tmp_path, pictures):
    same = tmp_path / "copy.png"
    same.write_bytes((pictures / "a.png").read_bytes())
    hashes = [
        _data(tmp_path, folder, [llava(image=name)]).identity()["train"]["sha256"]
        for folder, name in ((pictures, "a.png"), (tmp_path, "copy.png"), (pictures, "b.png"))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_settings_for_tables_are_refused_where_they_have_no_effect(tmp_path, pictures):
    path = write_json(tmp_path / "d.json", [llava()])
    with pytest.raises(
        UserError, match=r"data\.columns, data\.prompt and data\.target have no effect"
    ):
        read_conversations(path, str(pictures), _raise, Recipe(prompt="{x}"))


def test_a_picture_that_cannot_be_read_is_listed_once_however_many_answers_it_has(
    tmp_path, pictures
):
    talk = llava(image="gone.png")
    talk["conversations"] += [{"from": "human", "value": "and?"}, {"from": "gpt", "value": "x"}]
    path = write_json(tmp_path / "v.json", [llava(), talk])
    data = VLMData(val=path, image_dir=str(pictures), on_error="skip")
    data.prepare(load_processor(BaseSpec()), splits=("val",))
    assert len(data.skipped) == 1
