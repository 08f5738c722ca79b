"""CONTRIBUTING.md: the examples do what the page says they do."""

import gzip
import importlib
import json
import re
import statistics

import pytest
import torch

import vlmpeft.data.formats
import vlmpeft.evaluation.metrics
import vlmpeft.merging
import vlmpeft.strategies
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.merging.engine import merge
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.rule_table import RULES, Rule
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.deltas import add_deltas
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import ROOT, llava, randomize
from ..data.test_encode import Image, talk

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^New file `(\S+)`:\n\n```\w+\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Import an example as if its file were in the package."""

    def of(room, name):
        path = f"{room.__name__.replace('.', '/')}/{name}.py"
        (tmp_path / f"{name}.py").write_text(FILES[path])
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
        return importlib.import_module(f"{room.__name__}.{name}")

    return of


def test_the_example_strategy_starts_as_the_base_merges_and_goes_away(load, tiny, pictures):
    strategy = load(vlmpeft.strategies, "output_scale").OutputScale()
    model, processor, components = tiny
    encoded = Encoder(processor).encode(talk((Image(str(pictures / "a.png")), "what?"), "gear"))
    batch, names = collate([encoded], 0), [name for name, _ in model.named_parameters()]

    def loss():
        with torch.no_grad():
            return supervised_loss(model, batch)[0]

    before = loss()
    attached = attach(Plan(vision=strategy, language=strategy), model, components)
    assert torch.equal(loss(), before)
    randomize(attached)
    trained, deltas = loss(), attached.deltas()
    assert (trained - before).abs() > 1e-2
    attached.detach()
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(loss(), before)
    add_deltas(model, deltas)
    torch.testing.assert_close(loss(), trained, rtol=1e-4, atol=1e-4)


def test_the_example_metric_looks_at_words_not_at_their_order(load):
    metric = load(vlmpeft.evaluation.metrics, "same_words").SameWords()
    assert [metric.score(text, "red gear") for text in ("Gear red", "red", "red red gear")] == [
        1,
        0,
        0,
    ]


def test_the_example_reader_names_lines_and_refuses_a_bomb(load, tmp_path):
    read = load(vlmpeft.data.formats, "gzipped").read_gzipped_lines
    path, errors = tmp_path / "d.jsonl.gz", []
    path.write_bytes(gzip.compress(f"{{\n\n{json.dumps(llava())}\n".encode()))
    assert list(read(path, errors.append)) == [(f"{path}:3", llava())]
    assert [str(error).startswith(f"{path}:1: not valid JSON") for error in errors] == [True]
    path.write_bytes(gzip.compress(b"\n" * (2**20 + 1)))
    with pytest.raises(UserError, match=r"d\.jsonl\.gz:\d+: .* unpack to more than"):
        list(read(path, errors.append))


@pytest.mark.parametrize("tasks", [2, 3])
def test_the_example_rule_merges_as_any_other(load, tasks, monkeypatch):
    """It is no weighted sum, cuts nothing and draws nothing; the definition is the standard library's."""
    median = load(vlmpeft.merging, "middle").median
    monkeypatch.setitem(RULES, "median", Rule(median, "", ""))
    parts = [{"v.a": torch.randn(4, 5)} for _ in range(tasks)]
    ((_, merged),) = merge(parts, Recipe("median", lam=0.5), lambda _: "vision")
    columns = torch.stack([part["v.a"].flatten() for part in parts]).T.tolist()
    expected = torch.tensor([statistics.median(column) for column in columns])
    torch.testing.assert_close(merged, expected.view(4, 5) / 2)
