"""The fast reader of items against reading every line as JSON."""

import json

import numpy as np
import pytest

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import read_items, write_items
from vlmpeft.study.report.run import read_scores
from vlmpeft.study.report.scored_items import read_scored

from .made_runs import an_item

KEYS = ("id", "image", "fields", "scores")
HARD = {
    "plain": an_item("a"),
    "keys inside texts": an_item("a", generated='x, "prompt": y, "scores": {"m": 1}', expected='", "scores": {'),
    "keys inside fields": an_item("a", fields={"n": 1, "prompt": "p", "scores": {"m": 2}}),
    "a field that is a list": an_item("a", fields={"n": 1, "prompt": ["p"], "k": {"l": 1, "prompt": 2}}),
    "a metric called scores": an_item("a", scores={"m": 1.0, "scores": 2.0}),
    "both at once": an_item("a", fields={"n": 1, "prompt": "p"}, scores={"m": 1.0, "scores": 2.0}),
    "another order": dict(reversed(an_item("a").items())),
    "keys after the scores": an_item("a") | {"later": {"scores": 3}},
    "no picture": an_item("a", image=[]),
    "line ends in texts": an_item("a", generated="x\n, \"prompt\": \u2028y\r"),
}  # fmt: skip


@pytest.mark.parametrize("item", HARD.values(), ids=HARD)
def test_what_is_read_is_what_json_says(tmp_path, item):
    items = [an_item("0"), item, an_item("z", fields={"kind": "count"})]
    write_items(tmp_path / "items.jsonl.gz", items)
    expected = [{key: i[key] for key in KEYS} for i in read_items(tmp_path / "items.jsonl.gz")]
    found = [{key: i[key] for key in KEYS} for i in read_scored(tmp_path / "items.jsonl.gz")]
    assert json.dumps(found) == json.dumps(expected)


def test_scores_are_in_the_order_of_ids_with_nan_where_there_is_none(tmp_path):
    items = [an_item("b", scores={"m": 1}), an_item("a", scores={"n": 2}, image=["p", "q"])]
    write_items(tmp_path / "items.jsonl.gz", items)
    found = read_scores(tmp_path / "items.jsonl.gz")
    assert found.ids == ("a", "b")
    assert found.clusters == ("p q", "b.png")
    np.testing.assert_array_equal(found.scores["m"], [np.nan, 1])
    np.testing.assert_array_equal(found.scores["n"], [2, np.nan])


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:20] + b"\0" * 20 + b[40:],
        lambda b: b"no gzip",
        lambda b: b"",
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, damage):
    path = tmp_path / "items.jsonl.gz"
    write_items(path, [an_item(str(n)) for n in range(50)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"items\.jsonl\.gz"):
        read_scores(path)
