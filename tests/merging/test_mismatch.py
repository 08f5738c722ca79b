"""Merges of adapters of different bases: refused, or allowed with what each adapter loses in print."""

import copy
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.loading import load_adapter
from vlmpeft.adapters.manifest import read_manifest
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.equivalence import encode_items, make_trial, read_items
from vlmpeft.merging.base_mismatch import SAMPLES, find_mismatches
from vlmpeft.merging.merger import read_adapters
from vlmpeft.strategies import Full, LoRA
from vlmpeft.strategies.low_rank import dense
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import call, llava, randomize, write_json

FP32 = Bits(language="fp32")
QUESTION = "what colour is the part at the top left?"


@pytest.fixture(scope="module")
def written(_tiny_once, tmp_path_factory):
    """Two bases that differ in every weight, `tiny` and a folder, and adapters of each."""
    root = tmp_path_factory.mktemp("mismatch")
    model, processor, components = copy.deepcopy(_tiny_once)
    specs = {"tiny": BaseSpec(bits=FP32), "other": BaseSpec(str(root / "other"), FP32)}
    plans = {"lora": Plan(language=LoRA(r=2)), "full": Plan(projector=Full())}
    for name, spec in specs.items():
        if name == "other":
            _perturb(model)
            model.save_pretrained(root / "other")
            processor.save_pretrained(root / "other")
        for kind, plan in plans.items():
            attached = attach(plan, model, components)
            randomize(attached, 0.02)
            decoding = {"max_new_tokens": 4, "end_ids": [processor.tokenizer.eos_token_id]}
            save_adapter(
                root / f"{kind}-{name}",
                attached,
                processor=processor,
                base=origin(spec),
                decoding=decoding,
            )
            attached.detach()
    return SimpleNamespace(root=root, **specs)


def _perturb(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.5 * parameter.std().nan_to_num(0) * noise)


@pytest.fixture(scope="module")
def data(written, pictures):
    """Two questions; the second is answered with what the other base's adapter says to it on its own base."""
    records = [llava(QUESTION, "red", image=f"{name}.png") for name in "ab"]
    path = write_json(pictures / "mismatch.json", records)
    said = ask(written.root / "lora-other", written.other, path).texts[1]
    assert said
    records[1] = llava(QUESTION, said, image="b.png")
    return write_json(pictures / "mismatch.json", records)


def ask(folder, spec, data, number=2):
    """What an adapter, loaded by hand, says on a base."""
    model, _, components = load_base(spec)
    adapter = Adapter.read(folder)
    encoder = Encoder(adapter.processor, adapter.chat_template, adapter.manifest.max_pixels)
    samples = encode_items(read_items(data, None, number), encoder)
    load_adapter(folder, model, components)
    return make_trial(model, adapter.processor, adapter.manifest.decoding, samples).answers(model)


def by_hand(folder, spec, data, number=2):
    """(exact match, loss) of an adapter on a base."""
    answers = ask(folder, spec, data, number)
    return answers.exact_match, answers.loss


def merge(written, *args):
    return call("merge", "--method", "linear", "--adapters", *args)


def test_an_allowed_merge_prints_what_loading_the_adapter_by_hand_scores(
    written, data, tmp_path, capsys
):
    folders = [written.root / "lora-tiny", written.root / "lora-other"]
    options = ("--allow_base_mismatch", "--data", data, "--out", tmp_path / "merged")
    assert merge(written, *folders, *options) == 0
    text = capsys.readouterr().out
    own, here = (by_hand(folders[1], spec, data) for spec in (written.other, written.tiny))
    assert (own[0], here[0]) == (0.5, 0)
    assert abs(own[1] - here[1]) > 0.05
    (line,) = [line for line in text.splitlines() if line.startswith("adapter ") and "base" in line]
    scores = [f"exact match {exact:.2f}, loss {loss:.2f}" for exact, loss in (own, here)]
    found = re.fullmatch(
        r"adapter (\S+) on its own base (\S+) \(\w{16}\): (.*); on base (\S+) \(\w{16}\): (.*); 2 answers",
        line,
    )
    assert found is not None, line
    expected = (str(folders[1]), written.other.path, scores[0], "tiny", scores[1])
    assert found.groups() == expected
    (kept,) = read_manifest(tmp_path / "merged")["merge"]["mismatches"]
    assert (kept["own"]["exact_match"], kept["here"]["exact_match"]) == (own[0], here[0])
    assert (kept["own"]["loss"], kept["here"]["loss"]) == pytest.approx((own[1], here[1]), 1e-5)


def test_base_turns_the_table_and_json_has_the_scores(written, data, tmp_path, capsys):
    """The merge is for what --base says: the first adapter is the odd one, and the manifest is of that base."""
    folders = [written.root / "full-tiny", written.root / "lora-other"]
    options = ("--base", written.other.path, "--allow_base_mismatch", "--data", data, "--limit", 1)
    out = tmp_path / "merged"
    assert merge(written, *folders, *options, "--json", "--out", out) == 0
    (found,) = json.loads(capsys.readouterr().out)["mismatches"]
    assert (found["adapter"], found["samples"]) == (str(folders[0]), 1)
    assert (found["own"]["base"], found["here"]["base"]) == ("tiny", written.other.path)
    for place, spec in (("own", written.tiny), ("here", written.other)):
        exact, loss = by_hand(folders[0], spec, data, 1)
        score = found[place]
        assert (score["exact_match"], score["loss"]) == (exact, pytest.approx(loss, rel=1e-5))
        assert score["fingerprint"] == origin(spec)["fingerprint"]
    assert read_manifest(out)["base"] == origin(written.other)


def test_dw_of_an_adapter_of_another_base_is_against_its_own(written):
    own = read_adapters([written.root / "full-tiny"]).operands[0].deltas
    merger = read_adapters([written.root / "full-tiny"], written.other.path, allow_mismatch=True)
    found = merger.operands[0].deltas
    assert found
    for name, delta in found.items():
        assert torch.equal(dense(delta), dense(own[name]))
    weight = "model.multi_modal_projector.linear_1.weight"
    assert not torch.equal(merger.model.get_parameter(weight), _weight(written.tiny, weight))


def _weight(spec, name):
    return load_base(spec)[0].get_parameter(name)


def test_a_base_that_is_gone_or_has_changed_is_said_instead_of_a_score(written, data, tmp_path):
    for name in ("other", "lora-other"):
        shutil.copytree(written.root / name, tmp_path / name)
    manifest = read_manifest(tmp_path / "lora-other")
    manifest["base"]["id"] = str(tmp_path / "other")
    write_json(tmp_path / "lora-other/manifest.json", manifest)
    merger = read_adapters([written.root / "lora-tiny", tmp_path / "lora-other"], None, True)
    (found,) = find_mismatches(merger, [data], 1)
    assert found.own.problem is None
    assert found.own.loss is not None
    model = load_base(written.tiny)[0]
    model.save_pretrained(tmp_path / "other")
    (changed,) = find_mismatches(merger, [data], 1)
    fingerprint = origin(written.tiny)["fingerprint"]
    assert f"no score, what is there now is another ({fingerprint})" in str(changed)
    assert changed.here == found.here
    shutil.rmtree(tmp_path / "other")
    (gone,) = find_mismatches(merger, [data], 1)
    assert f"{tmp_path / 'other'} is not a folder" in str(gone)
    assert (gone.own.exact_match, gone.own.loss) == (None, None)
    assert gone.here == found.here


def test_adapters_of_one_base_are_not_scored(written):
    assert find_mismatches(read_adapters([written.root / "lora-tiny"]), ["nowhere.json"]) == []


@pytest.mark.parametrize(
    "options",
    [("lora-tiny", "lora-other"), ("lora-tiny", "--base", "other")],
    ids=["adapters", "base"],
)
def test_without_the_flag_both_fingerprints_are_named(
    written, tmp_path, capsys, monkeypatch, options
):
    monkeypatch.chdir(written.root)
    assert merge(written, *options, "--out", tmp_path / "merged") == 2
    (line,) = error_lines(capsys)
    for spec in (written.tiny, written.other):
        assert origin(spec)["fingerprint"] in line
    assert "--allow_base_mismatch merges them all the same" in line
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_bases_of_other_shapes_are_one_line(written, data, tmp_path, capsys, kind):
    """Also where the adapters agree and the base alone does not."""
    narrow, folder = tmp_path / "narrow", written.root / f"{kind}-tiny"
    _save_narrow(written.tiny, narrow)
    options = ("--base", narrow, "--allow_base_mismatch", "--data", data)
    assert merge(written, folder, *options, "--out", tmp_path / "merged") == 2
    (line,) = error_lines(capsys)
    assert str(folder) in line
    assert "has shape" in line
    assert f"it is of base tiny, and the merge is for {narrow}" in line
    assert not (tmp_path / "merged").exists()


def _save_narrow(spec, folder):
    """A base whose language model is half as wide."""
    from transformers import AutoModelForImageTextToText

    model, processor, _ = load_base(spec)
    config = copy.deepcopy(model.config)
    config.text_config.hidden_size //= 2
    config.text_config.intermediate_size //= 2
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def error_lines(capsys):
    return [s for s in capsys.readouterr().err.splitlines() if s.startswith("vlmpeft:")]


@pytest.mark.slow
def test_without_data_the_built_in_task_is_asked(written):
    folders = [written.root / "lora-tiny", written.root / "lora-other"]
    (found,) = find_mismatches(read_adapters(folders, allow_mismatch=True))
    assert found.samples == SAMPLES
    answers = ask(folders[1], written.tiny, None, SAMPLES)
    assert found.here.loss == pytest.approx(answers.loss, rel=1e-5)
