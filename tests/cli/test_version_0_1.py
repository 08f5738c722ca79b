"""What version 0.1 wrote still works: an adapter, the config beside it and the record."""

import json
import shutil

import pytest

from vlmpeft.__main__ import main
from vlmpeft.runtime.records import read_record

from ..conftest import ROOT
from .test_cli import run

OLD = ROOT / "tests" / "artefacts" / "v0.1"


@pytest.fixture
def old(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["vlmpeft"])


def test_an_adapter_of_version_0_1_scores_what_its_record_says(old, tmp_path, capsys):
    """By the config beside it: plan, data, metrics and limits."""
    assert main(["test", "--adapter", "run/adapter"]) == 0
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    tuned = read_record(tmp_path / "run")["metrics"]["tuned"]["test"]
    assert scores.keys() == {f"test/{name}" for name in tuned}
    assert scores["test/loss"] == pytest.approx(tuned["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "args",
    [
        ("merge", "--method=average", "--adapters", "run/adapter", "run/adapter", "--out", "out"),
        ("export", "--adapter", "run/adapter", "--to", "peft", "--out", "out", "--samples", "2"),
        ("chat", "--adapter", "run/adapter", "--once", "what?"),
        ("plan", "--config", "run/config.yaml"),
    ],
    ids=lambda args: args[0],
)
def test_every_verb_takes_what_version_0_1_wrote(old, capsys, args):
    code, lines = run(capsys, *args)
    assert code == 0, lines
