"""The verb `compare`: what it prints, its exit codes, and that it scores as `test` does."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vlmpeft.runtime.records import read_items

from ..conftest import ROOT, call
from ..study.made_runs import an_item, write_run

OLD = ROOT / "tests/artefacts/v0.1/adapter"


@pytest.fixture
def runs(tmp_path):
    """Two runs, the second of which is wrong in four of ten pictures."""
    folders = []
    for name, wrong in (("a", 0), ("b", 4)):
        items = [
            an_item(f"i{n:02}", generated="nut" if n % 10 < wrong else "gear", fields={"kind": "\x1b[31mx"[n % 2 :]})
            for n in range(60)
        ]  # fmt: skip
        folders.append(write_run(tmp_path / name, items))
    return folders


def test_it_says_what_is_worse_and_which_items(capsys, runs):
    assert call("compare", *runs, "--worst", "2") == 0
    out = capsys.readouterr().out
    assert "-0.4000" in out
    assert "worse" in out
    assert "Got worse in exact_match: 24 items; better: 0. The worst 2:" in out
    assert "i00" in out
    assert "\x1b" not in out


def test_json_is_all_that_is_printed_and_says_the_same(capsys, runs):
    assert call("compare", *runs, "--json", "--fail_if", "exact_match > 0") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["exact_match"]["difference"] == pytest.approx(-0.4)
    assert found["metrics"]["exact_match"]["verdict"] == "worse"
    assert len(found["worse"]) == 10
    assert found["gate"] == {"fail_if": ["exact_match > 0"], "failed": []}


def test_a_condition_that_holds_is_exit_code_4_after_the_tables(capsys, runs):
    assert call("compare", *runs, "--fail_if", "exact_match < -0.01", "exact_match > 0") == 4
    said = capsys.readouterr()
    assert "Got worse" in said.out
    assert said.err.strip() == "vlmpeft: compare: exact_match < -0.01: it is -0.4"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--fail_if", "exact_match == 1"], "METRIC < NUMBER"),
        (["--fail_if", "bleu < 0"], "no metric 'bleu'"),
        (["--metric", "exact_mach"], "Did you mean exact_match?"),
        (["--group_by", "kinds"], "Did you mean kind?"),
        (["--cluster", "kinds"], "Did you mean kind?"),
        (["--limit", "3"], "no effect without --data"),
        (["--margin", "0"], "give a number above 0"),
        (["--worst", "-1"], "give 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, runs, args, message):
    assert call("compare", *runs, *args) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]


def test_one_picture_is_no_interval_and_null_in_json(capsys, tmp_path):
    run = write_run(tmp_path / "a", [an_item("i", fields={"kind": "k"})])
    assert call("compare", run, run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["exact_match"]["low"] is None
    assert call("compare", run, run) == 0


def test_comparing_records_needs_no_torch(runs):
    code = (
        "import sys, vlmpeft.__main__ as m; a, b, page = sys.argv[1:]\n"
        "assert m.main(['compare', a, b, '--html', page]) == 0; assert 'torch' not in sys.modules"
    )
    page = runs[0] / "page.html"
    args = [sys.executable, "-c", code, *map(str, runs), str(page)]
    subprocess.run(args, cwd=ROOT, check=True, capture_output=True)


def test_the_page_shows_pictures_that_are_there_and_no_others(capsys, tmp_path, pictures):
    items = [
        an_item(n, generated=g, image=[picture], expected="<b>gear</b>")
        for n, g, picture in (("x", "", "a.png"), ("y", "<i>", "../secret.png"), ("z", "", "none.png"))
    ]  # fmt: skip
    (pictures.parent / "secret.png").write_bytes((pictures / "b.png").read_bytes())
    right = [item | {"scores": {"exact_match": 1}} for item in items]
    a, b = write_run(tmp_path / "a", right), write_run(tmp_path / "b", items)
    page = tmp_path / "page.html"
    assert call("compare", a, b, "--html", page, "--image_dir", pictures) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 1
    assert "&lt;b&gt;gear&lt;/b&gt;" in text
    assert "<b>gear</b>" not in text
    assert "http" not in text


@pytest.mark.slow
def test_with_data_each_side_answers_as_test_has_it(capsys, tmp_path):
    """An adapter in its run folder, and the base under it, which knows these questions already."""
    assert (
        call("compare", "base", OLD, "--data", "workbench:source", "--limit", "40", "--json") == 0
    )
    found = json.loads(capsys.readouterr().out)["metrics"]
    args = ["--data.test=workbench:source", "--eval.limit=40", f"--out={tmp_path}"]
    assert call("test", "--adapter", OLD, *args) == 0
    items = read_items(tmp_path / "items.jsonl.gz")
    assert len(items) == 40
    for metric in ("exact_match", "token_f1"):
        mean = np.mean([item["scores"][metric] for item in items])
        assert found[metric]["means"][0] > 0.1
        assert found[metric]["means"][1] == pytest.approx(mean)
    assert found["exact_match"]["num_seeds"] == [1, 1]


def test_two_bases_are_nothing_to_compare(capsys):
    assert call("compare", "base", "base", "--data", "workbench:format") == 2
    assert "both sides are the base" in capsys.readouterr().err
