"""Text files of records: what a table or JSON may look like, and the line that names what is wrong."""

import json
import re

import pytest

from vlmpeft.data.formats.files import read_json, read_table
from vlmpeft.data.formats.sources import read_conversations
from vlmpeft.runtime.errors import UserError


def _raise(error):
    raise error


def rows(path, on_error=_raise):
    return list(read_table(path, on_error))


def records(path, on_error=_raise):
    return list(read_json(path, on_error))


@pytest.fixture
def write(tmp_path):
    """Write a file, text in UTF-8; gives its path."""

    def to(name, content, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return to


def message(read, path):
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert path.name in text
    assert len(text) < 1000
    return text


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_separator_encoding_and_line_end_gives_the_same_rows(
    write, separator, encoding, newline
):
    cells = [["image", "question", "answer"], ["ä.png", "groß? €", "ja"], ["b.png", "", "nein"]]
    text = newline.join(separator.join(line) for line in cells) + newline
    assert [row for _, row in rows(write("t.csv", text, encoding))] == [
        dict(zip(cells[0], line, strict=True)) for line in cells[1:]
    ]


def test_separators_inside_of_quoted_header_names_do_not_count(write):
    path = write("t.csv", '\n\n"a, b, c";answer\n1;2\n')
    assert rows(path) == [(f"{path}:4", {"a, b, c": "1", "answer": "2"})]
    assert rows(write("t.tsv", "a,b\tc\n1,2\t3\n"))[0][1] == {"a,b": "1,2", "c": "3"}
    assert rows(write("one.csv", "answer\nx\n\ny\n"))[1][1] == {"answer": "y"}


def test_quoted_cells_hold_line_breaks_quotes_and_separators_and_rows_keep_their_first_line(write):
    path = write("t.csv", 'q,a\n"one\ntwo, ""three""",x\n\nlast,y\n')
    assert rows(path) == [
        (f"{path}:2", {"q": 'one\ntwo, "three"', "a": "x"}),
        (f"{path}:5", {"q": "last", "a": "y"}),
    ]


def test_cells_may_be_longer_than_the_limit_of_csv(write):
    uri = "data:image/png;base64," + "A" * 300_000
    assert rows(write("t.csv", f'image,a\n"{uri}",x\n'))[0][1]["image"] == uri


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (",question\n0,q\n", ":1: a column has no name .1.; .*pandas"),
        ("question,\nq,\n", ":1: a column has no name .2."),
        ("\n a ,a\n", ":2: column 'a' is there twice"),
        ("q,a\nx,y\nx\n", ":3: 1 cells, but the header has 2"),
        ("q,a\nx,y,z\n", ":2: 3 cells, but the header has 2; a cell with a separator"),
        ('q,a\n"x,y\nz,w\n', ":2: not a valid table: .* a quote that begins here is never closed"),
        ('q,a\n"x"y,z\n', ":2: not a valid table: ',' expected after '\"'"),
        ("q,a\nx,y\0\n", ":2: a NUL byte"),
        (b"q,a\nx,\xff\xfe\n", "cannot be read as UTF-8 text: .* at byte 6; save it as UTF-8"),
        (b"\xff\xfeq\x00,", "cannot be read as UTF-16 text"),
        ("q,a\n".encode("utf-16-le"), ":1: a NUL byte"),
        ("x" * 5000 + ",b,b\n1,2,3\n", "column 'b' is there twice"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_with_file_and_line(write, content, pattern):
    assert re.search(pattern, message(rows, write("t.csv", content)))


def test_wrong_rows_are_passed_over_one_by_one_but_not_what_an_open_quote_swallows(write):
    errors = []
    path = write("t.csv", 'q,a\n1,x\nbad\n"b"c,d\n2,y\n')
    assert [row["a"] for _, row in rows(path, errors.append)] == ["x", "y"]
    assert [str(error).split(": ")[0] for error in errors] == [f"{path}:3", f"{path}:4"]
    with pytest.raises(UserError, match="never closed"):
        rows(write("t.csv", 'q,a\n1,x\n"2,y\n3,z\n'), errors.append)


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_json_lines_are_known_by_their_beginning_and_keep_line_ends_of_unicode(write, name):
    texts = ["a\u2028b\u0085c\x7f", "\u2029", "e"]
    lines = [json.dumps({"t": text}, ensure_ascii=False) for text in texts]
    path = write(name, "\ufeff" + lines[0] + "\r\n\n" + "\n".join(lines[1:]))
    assert records(path) == [
        (f"{path}:{line}", {"t": text}) for line, text in zip((1, 3, 4), texts, strict=True)
    ]


def test_a_list_is_numbered_from_zero(write):
    path = write("d.json", '\n [{"a": 1},\n 2]')
    assert records(path) == [(f"{path} record 0", {"a": 1}), (f"{path} record 1", 2)]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("d.json", "", "d.json:1: not valid JSON"),
        ("d.json", '[{"a": 1},\n{"b" 2}]', "d.json:2: not valid JSON: Expecting ':'"),
        ("d.json", "[" * 100_000, "d.json: not valid JSON: nested too deeply"),
        ("d.json", "[1" + "0" * 9000 + "]", "d.json: not valid JSON: a number is too long"),
        ("d.json", "7", "must hold a list of conversations or one on each line, not int"),
        ("d.json", '{\n "images": [],\n "annotations": []\n}', "['images', 'annotations']"),
        ("d.json", '{\n "images": [],\n', "d.json:3: not valid JSON"),
        ("d.jsonl", '{"a": 1}\n{"a"\n', "d.jsonl:2: not valid JSON: Expecting ':' delimiter"),
        ("d.jsonl", '{"a": 1' + "0" * 9000 + "}", "d.jsonl:1: not valid JSON: a number is too"),
        ("d.jsonl", '{"a": ' + "[" * 100_000, "d.jsonl:1: not valid JSON: nested too deeply"),
        ("d.jsonl", b'{"a": "\x00"}', "d.jsonl:1: a NUL byte"),
    ],
)
def test_what_is_wrong_with_json_is_named_with_file_and_line(write, name, content, text):
    assert text in message(records, write(name, content))


def test_wrong_lines_are_passed_over_one_by_one(write):
    errors = []
    path = write("d.jsonl", '{"a": 1}\n{oops\n\n{"a": 2}\n')
    assert [record["a"] for _, record in records(path, errors.append)] == [1, 2]
    assert len(errors) == 1
    assert f"{path}:2" in str(errors[0])


def test_a_file_without_a_usable_record_says_what_the_first_one_lacked(write):
    path = write("t.csv", "q,colour\nx,y\nz,w\n")
    with pytest.raises(
        UserError, match=r"no usable conversation; of 2 errors the first: .*t\.csv:2"
    ):
        read_conversations(str(path), None, lambda error: None)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "gone.json", "gone/*.csv", "[", ""])
def test_paths_that_cannot_be_are_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_conversations(path, None, _raise)
    assert len(str(caught.value)) < 300
