"""Rows of columns become conversations: what each column is, how questions and answers are made of them."""

import datetime as dt
import decimal
import json
from pathlib import Path

import pytest

from vlmpeft.data.conversation import Image
from vlmpeft.data.formats.chat_records import conversation_from_chat
from vlmpeft.data.formats.rows import Columns, Recipe, check_target
from vlmpeft.data.formats.sources import as_sources, read_conversations
from vlmpeft.runtime.errors import UserError

from ..conftest import llava, write_json

FOLDER = Path("/pics")


def convert(row, *, columns=None, **settings):
    return Recipe(columns or Columns(), **settings).conversation(row, "t.csv:2", FOLDER)


def texts(conversation):
    return [message.text for message in conversation.messages]


def refusal(row, **settings):
    with pytest.raises(UserError) as caught:
        convert(row, **settings)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize("image", ["image", "images", "file_name", "photo"])
@pytest.mark.parametrize("prompt", ["question", "prompt", "instruction"])
@pytest.mark.parametrize("answer", ["answer", "caption", "label", "response"])
def test_usual_names_need_no_columns(image, prompt, answer):
    row = {answer: "a", prompt: " q ", image: "x.png"}
    named = Columns(image=image, prompt=prompt, answers=answer)
    assert convert(row) == convert(row, columns=named)
    assert convert(row).messages[0].parts == (Image("/pics/x.png"), "q")


def test_a_column_that_is_named_wins_over_the_usual_name():
    row = {
        "question": "no",
        "ask": "yes",
        "answer": "no",
        "say": "a",
        "image": "no",
        "shot": "s.png",
    }
    one = convert(row, columns=Columns(prompt="ask", answers="say", image="shot"))
    assert texts(one) == ["yes", "a"]
    assert one.images == (Image("/pics/s.png"),)


def test_several_image_columns_are_shown_in_their_order_and_empty_ones_left_out():
    row = {
        "a": "1.png",
        "b": "",
        "c": ["2.png", "3.png"],
        "d": None,
        "question": "q",
        "answer": "x",
    }
    one = convert(row, columns=Columns(image=["c", "b", "d", "a"]))
    assert one.images == tuple(Image(f"/pics/{n}.png") for n in (2, 3, 1))
    assert convert(row, columns=Columns(image=[])).images == ()


def test_a_list_of_images_may_be_json_in_a_cell():
    row = {"images": ' ["1.png", "2.png"] ', "question": "<image>or<image>?", "answer": "x"}
    first, second = Image("/pics/1.png"), Image("/pics/2.png")
    assert convert(row).messages[0].parts == (first, "or", second, "?")
    assert convert(row | {"images": "[odd].png", "question": "q"}).images == (
        Image("/pics/[odd].png"),
    )


@pytest.mark.parametrize("empty", [None, "", [], float("nan"), {"bytes": None, "path": None}])
def test_a_row_whose_picture_is_empty_is_text(empty):
    row = {"image": empty, "question": "q", "answer": "a"}
    assert convert(row).images == ()
    assert convert(row).messages[0].parts == ("q",)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{categry}", "data.prompt: there is no column 'categry'. Did you mean category?"),
        ("{zzz}", "data.prompt: there is no column 'zzz'. There is: brand, category, image, n."),
        ("{brand", "data.prompt '{brand': expected '}' before end of string; a brace itself"),
        ("brand}", "Single '}' encountered in format string; a brace itself is written twice"),
        ('{"brand": "{brand}"}', "a brace itself is written twice"),
        ("{}", "there is no column ''; between braces is the name of a column"),
        ("{0}", "there is no column '0'; between braces"),
        ("{brand.upper}", "there is no column 'brand.upper'; between braces"),
        ("{brand.__class__.__mro__}", "there is no column 'brand.__class__.__mro__'"),
        ("{brand[0]}", "there is no column 'brand[0]'"),
        ("{n:>1000000000}", "there is no column 'n:>1000000000'; .* without attributes or formats"),
        ("{brand!r}", "there is no column 'brand!r'"),
        ("{n:{n}}", "there is no column 'n:{n}'"),
        ("{image}", "data.prompt: column 'image' holds bytes, not text"),
        ("  {{}}"[:2], "an empty question"),
    ],
)
def test_a_template_takes_names_of_columns_and_nothing_else(template, message):
    import re

    row = {"brand": "Acme", "category": "bag", "n": 3, "image": Image("/cache/1.bin", 0, 5)}
    pattern = ".*".join(map(re.escape, message.split(".*")))
    assert re.search(pattern, refusal(row, prompt=template, target="x"))


def test_odd_names_of_columns_are_names_and_values_are_never_templates():
    row = {
        "a.b": "1",
        "c[0]": "2",
        "time:of": "3",
        "x!r": "4",
        "a": "{c}",
        "gr\u00f6\u00dfe (cm)": "5",
    }
    template = "{a.b} {c[0]} {time:of} {x!r} {a} {{c}} {gr\u00f6\u00dfe (cm)}"
    assert texts(convert(row, prompt=template, target="t")) == ["1 2 3 4 {c} {c} 5", "t"]


def test_an_empty_cell_is_no_text_in_a_template():
    row = {"a": None, "b": float("nan"), "c": "", "d": 0}
    assert texts(convert(row, prompt="[{a}{b}{c}{d}]", target="x")) == ["[0]", "x"]


def test_a_json_target_keeps_numbers_nulls_and_unicode():
    row = {
        "Marke": "Größe \u4e2d",
        "n": 4,
        "x": 2.5,
        "ok": True,
        "tags": ["a", None],
        "price": decimal.Decimal("12.50"),
        "day": dt.date(2024, 2, 29),
        "none": None,
        "nan": float("nan"),
        "empty": "",
    }
    one = convert(row, prompt="q", target={"json": list(row)})
    assert "Größe \u4e2d" in one.messages[-1].text
    wanted = row | {"price": 12.5, "day": "2024-02-29", "nan": None, "empty": None}
    assert json.loads(one.messages[-1].text) == wanted
    renamed = convert(row, prompt="q", target={"json": {"brand": "Marke", "count": "n"}})
    assert renamed.messages[-1].text == '{"brand": "Größe \u4e2d", "count": 4}'


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), "cannot be JSON"),
        (Image("/cache/1.bin", 0, 5), "holds bytes, not text"),
        ([float("nan")], "cannot be JSON"),
    ],
)
def test_what_json_cannot_say_is_refused(value, message):
    assert message in refusal({"v": value}, prompt="q", target={"json": ["v"]})


@pytest.mark.parametrize(
    "target", [7, [], {}, {"json": []}, {"json": {}}, {"json": "a"}, {"json": [1]}, {"json": {"a": 1}},
               {"json": ["a"], "x": 1}]
)  # fmt: skip
def test_a_target_of_another_form_is_refused(target):
    with pytest.raises(UserError, match="is a template such as"):
        check_target(target)
    with pytest.raises(UserError, match="is a template such as"):
        as_sources([{"path": "a.csv", "target": target}])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "a data source is a path or"),
        ({"path": 7}, "needs a path"),
        ({"path": "a", "weight": True}, "a number above 0"),
        ({"path": "a", "weight": float("nan")}, "a number above 0"),
        ({"path": "a", "image_dir": 3}, "image_dir of a is text, not 3"),
        ({"path": "a", "prompt": ["x"]}, "prompt of a is text"),
        ({"path": "a", "columns": "image"}, "columns of a are {image: COLUMN"),
        ({"path": "a", "columns": {"image": 3}}, "data.columns.image is the name of a column, not 3"),
        ({"path": "a", "columns": {"image": ["x", 3]}}, "data.columns.image is the name"),
        ({"path": "a", "columns": {"id": ["x"]}}, "data.columns.id is the name"),
    ],
)  # fmt: skip
def test_settings_of_a_source_are_checked_before_anything_is_read(source, message):
    with pytest.raises(UserError) as caught:
        as_sources([source])
    assert message in str(caught.value)


SAID = ["red", "dark red", "red", "brown", "red", "dark red", "", "red", "maroon", "red"]


@pytest.mark.parametrize(
    "answers",
    [
        SAID,
        json.dumps(SAID),
        [{"answer": text, "answer_id": n} for n, text in enumerate(SAID)],
        json.dumps([{"answer": text} for text in SAID]),
        {"answer": SAID, "answer_id": list(range(10))},
    ],
)
def test_of_ten_answers_the_most_frequent_is_learnt_and_all_are_accepted(answers):
    (_, answer) = convert({"question": "q", "answers": answers}).messages
    assert answer.text == "red"
    assert answer.references == tuple(text for text in SAID if text)


@pytest.mark.parametrize("box", ["[0.1, 0.2, 0.3, 0.4]", "[[1, 2], [3, 4]]", "[red]", "[3]"])
def test_a_list_of_numbers_in_a_cell_is_one_answer(box):
    (_, answer) = convert({"question": "q", "answer": box}).messages
    assert answer.text == box
    assert answer.references == ()


@pytest.mark.parametrize(
    "answer", [None, "", " ", [], [None, ""], float("nan"), "[]", {"text": None}]
)
def test_a_row_without_an_answer_is_refused(answer):
    assert refusal({"question": "q", "answer": answer}) == "an empty answer"
    assert "no answer: give data.target or data.columns.answers; the columns are question, x" in (
        refusal({"question": "q", "x": answer})
    )


def test_what_is_no_text_is_refused_where_text_is_meant():
    row = {"question": "q", "answer": "a", "system": "s"}
    assert "column 'question' holds a list" in refusal(row | {"question": ["q"]})
    assert "column 'question' holds bytes" in refusal(row | {"question": Image("x", 0, 3)})
    assert "column 'system' holds a dict" in refusal(row | {"system": {"a": 1}})
    assert "an answer is a text or a list of texts" in refusal(row | {"answer": {"b": 1}})
    assert "an answer is a text" in refusal(row | {"answer": Image("x", 0, 3)})
    assert "an image is a path or a data URI, not 7" in refusal(row | {"image": [7]})
    assert "'image' is a path or a list of paths, not float" in refusal(row | {"image": 1.5})
    assert "answer 'see <image>' holds <image>" in refusal(row | {"answer": "see <image>"})
    assert "2 more image(s) given than <image>" in refusal(
        row | {"image": ["a", "b", "c"], "question": "<image> q"}
    )


@pytest.mark.parametrize("choices", [["bolt", "nut"], '["bolt", "nut"]'])
def test_an_answer_is_a_choice_or_its_position(choices):
    row = {"question": "q", "choices": choices}
    for answer in ("nut", 1):
        one = convert(row | {"answer": answer})
        assert one.messages[-1].text == "nut"
        assert one.extra["choices"] == ["bolt", "nut"]
    assert convert(row | {"answer": True}).messages[-1].text == "True"
    for answer in (2, -1):
        assert f"answer {answer} is neither one of the 2 choices nor a position" in refusal(
            row | {"answer": answer}
        )


def test_a_number_that_may_be_a_choice_or_a_position_is_refused_with_the_way_out():
    row = {"question": "q", "choices": [1, 2, 3], "answer": 2}
    assert "answer 2 may be the choice '2', or '3' by its position" in refusal(row)
    assert convert(row, target="{answer}").messages[-1].text == "2"
    assert convert(row | {"choices": [0, 1, 2]}).messages[-1].text == "2"
    assert convert(row | {"answer": 3}).messages[-1].text == "3"


def test_choices_for_all_rows_come_where_a_row_has_none():
    one = convert({"question": "q", "answer": 0}, choices=["yes", "no"])
    assert one.messages[-1].text == "yes"
    assert one.extra["choices"] == ["yes", "no"]


def test_system_prompt_and_id():
    one = convert({"question": "q", "answer": "a", "system": " Be brief. ", "id": 17})
    assert [message.role for message in one.messages] == ["system", "user", "assistant"]
    assert texts(one)[0] == "Be brief."
    assert one.id == "17"
    for empty in (None, "", float("nan")):
        assert (
            convert({"question": "q", "answer": "a", "id": empty, "system": empty}).id == "t.csv:2"
        )


def test_an_item_keeps_small_plain_values_that_can_be_written_as_json():
    row = {"question": "q", "answer": "a", "kind": "k", "n": 3, "references": "r", "nan": float("nan"),
           "uri": "data:image/png;base64,AAAA", "long": "x" * 300, "list": [1], "half": "\udcff"}  # fmt: skip
    assert convert(row).extra == {"question": "q", "answer": "a", "kind": "k", "n": 3}
    record = llava(
        kind="k", boxes=[[1, 2]], half="\udcff", day=dt.date(2024, 1, 2), nan=float("nan")
    )
    record |= {"thumb": Image("x", 0, 3), "raw": b"x", "none": None}
    extra = conversation_from_chat(record, "p", FOLDER).extra
    assert extra == {"kind": "k", "boxes": [[1, 2]], "day": "2024-01-02", "none": None}
    json.dumps(extra, ensure_ascii=False, allow_nan=False).encode()


def test_file_names_that_are_not_utf8_keep_their_bytes_and_have_a_name_to_print(tmp_path):
    """`data template` writes them as half surrogate pairs."""
    record = llava(image="\udcff.png", id="\udcff#1")
    (one,) = read_conversations(write_json(tmp_path / "d.json", [record]), None, _raise)
    assert one.images == (Image(str(tmp_path / "\udcff.png")),)
    assert one.images[0].label == "\\udcff.png"
    assert one.id == "\\udcff#1"


def _raise(error):
    raise error


@pytest.mark.parametrize("record", [llava("\ud83d"), llava(answer="\ude00"), "a text", [], 7, None])
def test_records_that_cannot_be_learnt_from_are_named_by_place(tmp_path, record):
    path = write_json(tmp_path / "d.json", [llava(), record])
    with pytest.raises(
        UserError, match=r"d\.json record 1: (text that is not Unicode|a conversation)"
    ):
        read_conversations(path, None, _raise)


def test_nulls_that_arrow_adds_to_turns_and_parts_are_as_if_absent():
    turn = {"from": None, "value": None, "loss": None, "references": None}
    part = {"type": "text", "text": "what?", "image": None, "image_url": None}
    messages = [
        turn | {"role": "user", "content": [part]},
        turn | {"role": "assistant", "content": "no", "weight": 0},
        turn | {"role": "user", "content": "and now?"},
        turn | {"role": "assistant", "content": "yes", "weight": None},
    ]
    record = {"messages": messages, "conversations": None, "image": None, "id": None}
    one = conversation_from_chat(record, "p:1", FOLDER)
    assert texts(one) == ["what?", "no", "and now?", "yes"]
    assert [message.loss for message in one.messages if message.role == "assistant"] == [
        False,
        True,
    ]
    assert one.id == "p:1"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "text", "text": {"a": 1}}, "the text of a content part is not text"),
        ({"type": "text", "text": 7}, "the text of a content part is not text: 7"),
        ({"type": "audio", "data": "x" * 9000}, "is neither text nor an image"),
        (["x"], "is neither text nor an image"),
        ({"type": "image_url", "image_url": {"url": 7}}, "an image is a path or a data URI, not 7"),
    ],
)
def test_parts_that_are_not_understood_are_shown_by_their_beginning(part, message):
    turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]
    with pytest.raises(UserError) as caught:
        conversation_from_chat({"messages": turns}, "p", FOLDER)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200
