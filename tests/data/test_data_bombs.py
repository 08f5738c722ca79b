"""Small data files that unpack to gigabytes are refused in one line, in little memory and time."""

import io
import json
import os
import subprocess
import sys
import tarfile

import pytest
from PIL import Image as Pillow

from vlmpeft.data.conversation import Image
from vlmpeft.data.formats import pages
from vlmpeft.data.formats.limits import MOST_COLUMNS, Allowance
from vlmpeft.data.formats.sizes import row_bytes
from vlmpeft.data.formats.sources import read_conversations
from vlmpeft.data.images import MAX_JPEG_SCANS, open_image
from vlmpeft.runtime.errors import UserError

from ..conftest import ROOT, write_json

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MB = 10**6
# reads each file of the command line; prints errors, then the peak in MB above what imports took
PROGRAM = """
import json, resource, sys
from vlmpeft.data.formats.sources import read_conversations
from vlmpeft.data.images import open_image
import pyarrow.parquet, pyarrow.compute
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
before, found = peak(), {}
def refuse(error): raise error
for path in sys.argv[1:]:
    try:
        found[path] = f"read {len(read_conversations(path, None, refuse))}"
    except ValueError as error:
        found[path] = f"{type(error).__name__} {error}"
print(json.dumps([found, peak() - before]))
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMPEFT_CACHE", str(tmp_path / "cache"))


def read_apart(*paths):
    """({path: outcome}, most MB that reading took) of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, peak = json.loads(done.stdout)
    return list(found.values()), peak


def _raise(error):
    raise error


def read(path):
    return read_conversations(str(path), None, _raise)


def qa(number):
    return {"question": ["q"] * number, "answer": ["a"] * number}


def references(number, text):
    """An array of references to one text."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * number, pa.int32()), pa.array([text]))


def lists(length, values):
    """An array of lists of that length."""
    ends = pa.array(range(0, len(values) + 1, length), pa.int32())
    return pa.ListArray.from_arrays(ends, values)


def parquet(path, columns, **settings):
    settings = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**30} | settings  # fmt: skip
    pq.write_table(pa.table(columns), path, **settings)
    assert path.stat().st_size < 300_000
    return path


def saved(path, batch, compression=None):
    path.mkdir()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(path / "data.arrow", batch.schema, options=options) as stream:
        stream.write_batch(batch)
    write_json(path / "state.json", {"_data_files": [{"filename": "data.arrow"}]})
    return path


def test_parquet_bombs_are_refused_in_little_memory(tmp_path):
    plain = {"use_dictionary": False}
    bombs = [
        parquet(tmp_path / "cell.parquet", {"image": [bytes(150 * MB)], **qa(1)}, **plain),
        parquet(tmp_path / "entry.parquet", {"question": references(9, "x" * 150 * MB), "answer": ["a"] * 9}),
        parquet(tmp_path / "shared.parquet", {"question": references(999, "x" * 9 * MB), "answer": ["a"] * 999}),
        parquet(tmp_path / "lists.parquet", {"answers": lists(100, references(1000, "x" * 9 * MB)), "question": ["q"] * 10}),
        parquet(tmp_path / "nulls.parquet", {"answers": lists(36 * MB, pa.nulls(36 * MB, pa.int8())), "question": ["q"]}),
        parquet(tmp_path / "rows.parquet", {"question": pa.nulls(2**22, pa.int8())}),
        parquet(tmp_path / "fixed.parquet", {"image": pa.nulls(1, pa.binary(550 * MB)), **qa(1)}, **plain),
        parquet(tmp_path / "prefix.parquet", {"question": ["q"] * 10, "answers": [["z" * 3 * MB] * 19] * 10}, **plain,
                column_encoding={"answers.list.element": "DELTA_BYTE_ARRAY"}),
    ]  # fmt: skip
    outcomes, peak = read_apart(*bombs)
    expected = [
        "column image holds a cell of 150 MB",
        "column question holds a cell of 150 MB",
        "unpack to more than 1,074 MB",
        "row 0 takes 900 MB",
        "its columns unpack to 576 MB at once",
        "unpack to more than 1,074 MB",
        "at once; 537 MB are allowed",
        "the lists of column answers.list.element unpack to",
    ]
    for bomb, outcome, words in zip(bombs, outcomes, expected, strict=True):
        assert outcome.startswith(f"UserError data file {bomb}: "), outcome
        assert words in outcome
        assert "\n" not in outcome
        assert len(outcome) < 600
    assert peak < 700


def test_bombs_in_saved_data_sets_are_refused_in_little_memory(tmp_path):
    batch = pa.RecordBatch.from_pydict
    whole = pa.ListViewArray.from_arrays(
        pa.array([0] * 999, pa.int32()), pa.array([10**5] * 999, pa.int32()), pa.array(["a"] * 10**5)
    )  # fmt: skip
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([9], pa.int32()), ["x"])
    nothing = pa.Array.from_buffers(pa.null(), 2**31 - 1, [None])
    empty = pa.ListArray.from_arrays(pa.array([0, 2**31 - 1], pa.int32()), nothing)
    shared = references(999, "x" * 9 * MB)
    bombs = [
        saved(tmp_path / "zstd", batch({"image": [bytes(99 * MB)] * 9, **qa(9)}), "zstd"),
        saved(tmp_path / "lz4", batch({"question": references(1, "x" * 9 * MB)}), "lz4"),
        saved(tmp_path / "shared", batch({"question": shared, "answer": ["a"] * 999})),
        saved(tmp_path / "views", batch({"answers": whole, "question": ["q"] * 999})),
        saved(tmp_path / "runs", batch({"question": runs})),
        saved(tmp_path / "rows", batch({"question": nothing})),
        saved(tmp_path / "nulls", batch({"answers": empty, "question": ["q"]})),
    ]
    outcomes, peak = read_apart(*bombs)
    expected = [
        "data.arrow is compressed",
        "data.arrow is compressed",
        "unpack to more than 1,074 MB",
        "unpack to more than 1,074 MB",
        "is of the type run_end_encoded",
        "unpack to more than 1,074 MB",
        "row 0 takes 68,719 MB",
    ]
    for bomb, outcome, words in zip(bombs, outcomes, expected, strict=True):
        assert outcome.startswith(f"UserError data folder {bomb}: "), outcome
        assert words in outcome
    assert peak < 300


def test_large_photos_long_texts_and_many_rows_go_on_being_read(tmp_path):
    noise = os.urandom(30 * MB)
    photos = {"image": [noise, noise[:-1]], "question": ["x" * 40 * MB, "q"], "answer": ["a"] * 2}
    pq.write_table(pa.table(photos), tmp_path / "photos.parquet")
    answers = [["red", "dark red", f"{n % 7}"] for n in range(5000)]
    many = {"question": [f"q{n}" for n in range(5000)], "answers": answers}
    pq.write_table(pa.table(many), tmp_path / "many.parquet", row_group_size=1000)
    first, second = read(tmp_path / "photos.parquet")
    assert [image.size for c in (first, second) for image in c.images] == [30 * MB, 30 * MB - 1]
    assert len(first.messages[0].text) == 40 * MB
    found = read(tmp_path / "many.parquet")
    assert [c.messages[-1].references for c in found] == [tuple(a) for a in answers]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_page_headers_add_up_to_what_the_footer_says(tmp_path, version, compression):
    columns = {"a": [f"{n % 5}" for n in range(3000)], "b": [["x"] * (n % 4) for n in range(3000)]}
    settings = {"data_page_version": version, "compression": compression, "data_page_size": 500}
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=1100, **settings)
    footer = pq.ParquetFile(path).metadata
    with path.open("rb") as file:
        for group in range(footer.num_row_groups):
            for column in range(2):
                chunk = footer.row_group(group).column(column)
                found = pages.read_pages(file, chunk, Allowance(0))
                assert found.values == chunk.num_values
                headers = chunk.total_uncompressed_size - found.total_bytes
                assert 0 < headers < chunk.total_uncompressed_size
                assert 0 < found.dictionary_bytes < 100


def test_a_saved_data_set_names_files_beside_it_only(tmp_path):
    saved(tmp_path / "one", pa.RecordBatch.from_pydict(qa(2)))
    assert len(read(tmp_path / "one")) == 2
    saved(tmp_path / "two", pa.RecordBatch.from_pydict(qa(2)))
    for name in ("../one/data.arrow", str(tmp_path / "one/data.arrow"), "..", 3):
        write_json(tmp_path / "two/state.json", {"_data_files": [{"filename": name}]})
        with pytest.raises(UserError, match=r"data folder .*two cannot be read"):
            read(tmp_path / "two")


def test_lengths_that_point_beside_the_data_are_refused(tmp_path):
    path = saved(tmp_path / "one", pa.RecordBatch.from_pydict(qa(9))) / "data.arrow"
    content = path.read_bytes()
    offsets = b"".join(n.to_bytes(4, "little") for n in range(10))
    damaged = offsets[:20] + (2**30).to_bytes(4, "little") + offsets[24:]
    assert offsets in content
    path.write_bytes(content.replace(offsets, damaged, 1))
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "one")


def test_rows_are_as_large_as_what_is_in_them():
    shared = references(4, "x" * 100)
    columns = {
        "texts": pa.array(["a" * 10, None, "", "b"]),
        "shared": shared,
        "lists": pa.array([["a"] * 3, [], None, ["b" * 50]]),
        "fixed": pa.array([["a", "b"], ["c" * 9, "d"], ["e", "f"], ["g", "h"]], pa.list_(pa.string(), 2)),
        "maps": pa.array([[("k", "v" * 20)], [], None, [("a", "b")]], pa.map_(pa.string(), pa.string())),
        "structs": pa.array([{"a": "x" * 7, "b": 1}, None, {"a": None, "b": 2}, {"a": "", "b": 3}]),
        "lists of shared": pa.ListArray.from_arrays([0, 2, 2, 3, 4], shared),
    }  # fmt: skip
    for name, column in columns.items():
        batch = pa.RecordBatch.from_arrays([column], [name])
        sizes = row_bytes(batch)
        for at, value in enumerate(column.to_pylist()):
            letters = sum(c.isalpha() for c in json.dumps(value)) if value else 0
            assert letters <= sizes[at] + 8, (name, at)
            assert sizes[at] <= letters + 32 * 10, (name, at)
        assert row_bytes(batch.slice(1)).tolist() == sizes[1:].tolist(), name


def test_tar_members_with_holes_and_endless_texts_are_refused(tmp_path):
    good = json.dumps({"question": "q", "answer": "a"}).encode()
    for name, key in (("sparse", "GNU.sparse.major"), ("long", None)):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            member = tarfile.TarInfo("1.json")
            content = b"1\n0\n1\n".ljust(512, b"\0") + b"x" if key else b" " * 68 * MB
            if key:
                sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
                member.pax_headers = sparse | {"GNU.sparse.name": "1.json", "GNU.sparse.realsize": str(10**11)}  # fmt: skip
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            member = tarfile.TarInfo("2.json")
            member.size = len(good)
            tar.addfile(member, io.BytesIO(good))
    for name, words in (("sparse", "is stored with holes"), ("long", "has 68 MB; a text has at")):
        errors = []
        found = read_conversations(str(tmp_path / f"{name}.tar"), None, errors.append)
        assert [c.id for c in found] == ["2"]
        assert len(errors) == 1
        assert words in str(errors[0])


def test_tables_of_too_many_columns_are_refused(tmp_path):
    names = [f"c{n}" for n in range(MOST_COLUMNS + 1)]
    (tmp_path / "d.csv").write_text(",".join(names) + "\n" + ",".join(names) + "\n")
    pq.write_table(pa.table({name: [1] for name in names}), tmp_path / "d.parquet")
    saved(tmp_path / "d", pa.RecordBatch.from_pydict({name: [1] for name in names}))
    for name in ("d.csv", "d.parquet", "d"):
        with pytest.raises(UserError, match="a table of 10,001 columns; 10,000 are allowed"):
            read(tmp_path / name)


def test_a_cell_of_millions_of_lists_is_not_unpacked(tmp_path):
    columns = {"question": ["q"], "answers": ["[" + "[]," * 2**20 + "[]]"]}
    path = parquet(tmp_path / "d.parquet", columns)
    with pytest.raises(UserError, match="row 0: a list of more than 1,048,576 entries in a cell"):
        read(path)


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(tmp_path):
    buffer = io.BytesIO()
    Pillow.new("L", (64, 64), 128).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rfind(b"\xff\xda") : -2]
    there = content.count(b"\xff\xda")
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:-2] + last * (MAX_JPEG_SCANS - there) + b"\xff\xd9")
    assert open_image(Image(str(path))).size == (64, 64)
    path.write_bytes(content[:-2] + last * (MAX_JPEG_SCANS - there + 1) + b"\xff\xd9")
    with pytest.raises(UserError, match="has 101 scans; 100 are allowed"):
        open_image(Image(str(path)))
