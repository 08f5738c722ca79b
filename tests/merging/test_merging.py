"""Merges of adapters: as a strategy on a component, and as an adapter of their own."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.loading import load_adapter
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.merging.conflicts import conflicts
from vlmpeft.merging.merger import read_adapters
from vlmpeft.merging.operands import read_operand
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.result import shape_result
from vlmpeft.merging.rule_table import RULES
from vlmpeft.merging.strategy import Merged
from vlmpeft.merging.tuning import GRID
from vlmpeft.strategies import (
    BitFit,
    BottleneckAdapter,
    DoRA,
    Full,
    LayerNormTuning,
    LoRA,
)
from vlmpeft.strategies.deltas import add_deltas
from vlmpeft.strategies.dense import Dense
from vlmpeft.strategies.low_rank import dense
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import call, llava, randomize, write_json
from ..strategies.test_strategies import batch, logits  # noqa: F401  a fixture

BASE = BaseSpec(bits=Bits(language="fp32"))


@pytest.fixture(scope="module")
def adapters(_tiny_once, tmp_path_factory):
    """Name -> folder of adapters of different kinds on language and projector; `elsewhere` is of another base."""
    torch.manual_seed(0)
    model, processor, components = copy.deepcopy(_tiny_once)
    base = origin(BASE)
    root = tmp_path_factory.mktemp("adapters")
    plans = {
        "lora": Plan(language=LoRA(r=4), projector=Full()),
        "dora": Plan(language=DoRA(r=2, targets=("q_proj", "v_proj"))),
        "low": Plan(language=LoRA(r=2, rslora=True)),
        "other": Plan(language=LoRA(r=3)),
        "norms": Plan(language=[LayerNormTuning(), LoRA(r=2, targets=("v_proj",))]),
        "bottleneck": Plan(language=BottleneckAdapter()),
        "bottleneck2": Plan(language=BottleneckAdapter()),
        "projector": Plan(projector=LoRA(r=2)),
        "biases": Plan(projector=BitFit()),
    }
    for name, plan in plans.items():
        attached = attach(plan, model, components)
        randomize(attached)
        save_adapter(
            root / name,
            attached,
            processor=processor,
            base=base,
            decoding={"max_new_tokens": 4, "end_ids": [processor.tokenizer.eos_token_id]},
        )
        attached.detach()
    manifest = json.loads((root / "other/manifest.json").read_text())
    manifest["base"] |= {"id": "another", "fingerprint": "0123456789abcdef"}
    shutil.copytree(root / "other", root / "elsewhere")
    write_json(root / "elsewhere/manifest.json", manifest)
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture(scope="module")
def three(adapters):
    """Adapters of different strategies, ranks and targets, read."""
    return read_adapters([adapters[name] for name in ("lora", "dora", "norms")])


SIBLINGS = ("average", "task_arithmetic", "cat", "svd", "magnitude", "dare_ties")


@pytest.mark.parametrize(
    "rule", [pytest.param(r, marks=pytest.mark.slow) if r in SIBLINGS else r for r in RULES]
)
def test_a_written_merge_answers_as_the_same_merge_on_the_fly(
    tiny,
    three,
    batch,  # noqa: F811
    rule,
    tmp_path,
):
    """As LoRA where that is exact, dense where it is not."""
    model, _, components = tiny
    merger = three
    if rule == "slerp":
        merger = replace(three, operands=three.operands[:2])
    folders = tuple(operand.folder for operand in merger.operands)
    recipe = Recipe(
        rule,
        rank="full",
        scope="component"
        if RULES[rule].scope == "model" and (RULES[rule].counts or RULES[rule].needs_gram)
        else None,
    )
    merger.save(merger.merge(recipe), recipe, tmp_path / "merged")
    attached = load_adapter(tmp_path / "merged", model, components)
    written = logits(model, batch)
    attached.detach()
    if RULES[rule].is_random:
        assert (written - logits(model, batch)).abs().max() > 1e-2
        return  # draws follow the parameters of the model, not of one component
    merged = Merged(folders, rule)
    attached = attach(Plan(projector=merged, language=merged), model, components)
    torch.testing.assert_close(logits(model, batch), written, rtol=1e-4, atol=2e-3)


def test_a_lora_and_a_bias_of_one_layer_are_merged_into_both(tiny, adapters, batch, tmp_path):  # noqa: F811
    """PEFT's wrapper renames the bias, so the two cannot be put on as they are."""
    model, _, components = tiny
    merger = read_adapters([adapters["projector"], adapters["biases"]])
    recipe = Recipe("task_arithmetic")
    merger.save(merger.merge(recipe), recipe, tmp_path / "merged")
    attached = load_adapter(tmp_path / "merged", model, components)
    found, ours = attached.deltas(), logits(model, batch)
    attached.detach()
    expected = [dense(d) for o in merger.operands for d in o.deltas.values()]
    assert len(found) == len(expected) == 4
    for name, delta in ((n, d) for o in merger.operands for n, d in o.deltas.items()):
        torch.testing.assert_close(found[name], dense(delta), rtol=1e-4, atol=1e-6)
    merged = Merged((adapters["projector"], adapters["biases"]), "task_arithmetic")
    attached = attach(Plan(projector=merged), model, components)
    torch.testing.assert_close(logits(model, batch), ours, rtol=1e-4, atol=1e-3)


def test_a_merge_of_loras_is_a_lora_that_plain_peft_loads(tiny, adapters, batch, tmp_path):  # noqa: F811
    from peft import PeftModel

    model, _, components = tiny
    folders = [adapters["low"], adapters["other"]]
    recipe = Recipe("linear", weights=(0.7, -0.4))
    merger = read_adapters(folders)
    assert next(merger.model.parameters()).is_meta  # factors need no base
    result = merger.merge(recipe)
    assert (result.rank, result.energy, result.tensors) == (5, 1.0, {})
    merger.save(result, recipe, tmp_path / "merged")
    attached = load_adapter(tmp_path / "merged", model, components)
    ours, found = logits(model, batch), attached.deltas()
    attached.detach()
    parts = [read_operand(Adapter.read(f), model, components).deltas for f in folders]
    for name, delta in found.items():
        by_hand = sum(
            w * dense(p[name]) for w, p in zip((0.7, -0.4), parts, strict=True) if name in p
        )
        torch.testing.assert_close(delta, by_hand, rtol=1e-4, atol=1e-5)
    peft = PeftModel.from_pretrained(model, tmp_path / "merged")
    torch.testing.assert_close(logits(peft, batch), ours, rtol=1e-4, atol=1e-3)


def test_a_rank_that_keeps_too_little_is_written_dense_unless_asked_for(adapters):
    merger = read_adapters([adapters["low"], adapters["other"]])
    auto = merger.merge(Recipe("ties"))
    assert not auto.products
    assert 0 < auto.refused_energy < 0.95
    asked = merger.merge(Recipe("ties", rank=2))
    assert {p.rank for p in asked.products.values()} == {2}
    assert 0 < asked.energy < 0.95
    assert merger.merge(Recipe("svd")).rank == 3
    assert merger.merge(Recipe("cat")).rank == 5


def test_the_energy_kept_is_that_of_all_weights_together():
    """Of squared singular values 9 + 1 and 100 + 100, the first of each."""
    parts = {"a.weight": torch.tensor([3.0, 1.0]).diag(), "b.weight": torch.full((2,), 10.0).diag()}
    result = shape_result(parts.items(), 1, {}, parts.keys())
    assert result.energy == pytest.approx((9 + 100) / (10 + 200))


def test_conflicts_of_an_adapter_with_itself_and_its_opposite(adapters):
    merger = read_adapters([adapters["low"], adapters["low"]])
    for found in merger.conflicts():
        assert found.cosine == pytest.approx(1)
        assert found.sign_disagreement == 0
        assert found.component == "language"
    opposite = [
        merger.operands[0].deltas,
        {n: -dense(d) for n, d in merger.operands[0].deltas.items()},
    ]
    for found in conflicts(opposite, lambda _: "language"):
        assert found.cosine == pytest.approx(-1)
        assert found.sign_disagreement == pytest.approx(1)


def test_what_has_no_dw_is_merged_in_its_own_parameters(tiny, adapters, tmp_path):
    """Half of each bottleneck's tensors."""
    model, _, components = tiny
    folders = [adapters["bottleneck"], adapters["bottleneck2"]]
    recipe = Recipe("average")
    merger = read_adapters(folders)
    merger.save(merger.merge(recipe), recipe, tmp_path / "merged")
    tensors = [Adapter.read(folder).tensors for folder in (*folders, tmp_path / "merged")]
    assert tensors[0].keys() == tensors[2].keys()
    for name, value in tensors[2].items():
        torch.testing.assert_close(value, (tensors[0][name] + tensors[1][name]) / 2)
    load_adapter(tmp_path / "merged", model, components)


def test_dense_dw_stands_on_any_width_and_leaves_no_trace(tiny, tiny_nf4, batch):  # noqa: F811
    names = (
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.language_model.norm.weight",
        "model.language_model.embed_tokens.weight",
    )
    for model, _, components in (tiny, tiny_nf4):
        before, plain = list(dict(model.named_parameters())), logits(model, batch)
        attached = attach(Plan(language=Dense(names=names)), model, components)
        torch.testing.assert_close(logits(model, batch), plain)
        randomize(attached)
        ours, deltas = logits(model, batch), attached.deltas()
        assert set(deltas) == set(names)
        attached.detach()
        take_away = add_deltas(model, deltas)
        torch.testing.assert_close(logits(model, batch), ours, rtol=1e-4, atol=1e-3)
        take_away()
        alone = {names[0]: deltas[names[0]]}
        take_away = add_deltas(model, alone)
        assert (logits(model, batch) - plain).abs().max() > 1e-3
        take_away()
        assert list(dict(model.named_parameters())) == before
        torch.testing.assert_close(logits(model, batch), plain, rtol=0, atol=0)


VERB = ("merge", "--adapters")


def test_merge_writes_an_adapter_and_says_what_it_is(adapters, tmp_path, capsys):
    out = tmp_path / "merged"
    args = [adapters["low"], adapters["other"], "--method", "ties", "--weights", "1", "0.5"]
    code = call(*VERB, *args, "--density", "0.3", "--explain", "--json", "--out", out)
    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    assert summary["components"]["language"]["dense"] > 0
    assert 0 < summary["energy_as_lora"] < 0.95
    assert (out / "conflicts.png").stat().st_size > 0
    merge = json.loads((out / "manifest.json").read_text())["merge"]
    assert (merge["recipe"]["density"], merge["recipe"]["weights"]) == (0.3, [1.0, 0.5])
    yaml = tmp_path / "m.yaml"
    yaml.write_text(
        f"adapters: [{adapters['low']}, {adapters['other']}]\nmethod: ties\nweights: [1, 0.5]\ndensity: 0.3\n"
    )
    assert call("merge", "--config", yaml, "--out", tmp_path / "again") == 0
    first, second = (Adapter.read(f).tensors for f in (out, tmp_path / "again"))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_tuned_knobs_are_those_of_the_best_mean_and_the_search_is_kept(
    adapters, tmp_path, pictures
):
    records = [
        llava("what colour is the part at the top left?", "red", image=f"{n}.png") for n in "abc"
    ]
    data = write_json(pictures / "val.json", records)
    args = [adapters["low"], adapters["other"], "--method", "dare_linear", "--tune", "lam"]
    assert call(*VERB, *args, "--data", data, "--out", tmp_path / "merged") == 0
    found = json.loads((tmp_path / "merged/manifest.json").read_text())["merge"]
    assert len(found["search"]) == len(GRID["lam"])
    best = max(found["search"], key=lambda one: one["mean"])
    assert best["knobs"] == {"lam": found["recipe"]["lam"]}
    assert best["mean"] == pytest.approx(sum(best["scores"].values()) / len(best["scores"]))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["low", "--tune", "lam"], "--tune needs validation data"),
        (["low", "--tune", "lamb", "--data", "x.json"], "Did you mean lam?"),
        (["low", "--tune", "gamma", "--data", "x.json"], "has no effect with method ties"),
        (["low", "bottleneck"], "BottleneckAdapter on language is no change of weights"),
        (["low", "elsewhere"], "--allow_base_mismatch merges them all the same"),
        (["low", "nowhere"], "there is no manifest.json"),
        (["low", "other", "--weights", "1"], "2 adapters need as many weights"),
        (["low", "--density", "0"], "density=0"),
        (["low", "--method", "tiez"], "Did you mean ties?"),
        (["low", "--densty", "0.1"], "Did you mean density?"),
        (["low", "--out", "low"], "exists already; nothing was written"),
    ],
)
def test_a_merge_that_cannot_be_is_one_line_and_nothing_is_written(
    adapters, capsys, monkeypatch, args, message
):
    root = Path(adapters["low"]).parent
    monkeypatch.chdir(root)
    before = sorted(root.rglob("*"))
    out = [] if "--out" in args else ["--out", "merged"]
    assert call(*VERB, *args, *out) == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("vlmpeft:")]
    assert message in line
    assert sorted(root.rglob("*")) == before


def test_strategies_of_different_kinds_and_ranks_merge(tiny, adapters, batch):  # noqa: F811
    """Half of each dW, by hand."""
    model, _, components = tiny
    plain = logits(model, batch)
    three = tuple(adapters[name] for name in ("lora", "dora", "low"))
    attached = attach(
        Plan(language=Merged(three, "linear", weights=(0.5, 0.3, 0.2))), model, components
    )
    ours = logits(model, batch)
    found = attached.deltas()
    attached.detach()
    parts = [
        read_operand(Adapter.read(folder), model, components, ("language",)).deltas
        for folder in three
    ]
    name = "model.language_model.layers.1.self_attn.v_proj.weight"
    by_hand = sum(w * dense(part[name]) for w, part in zip((0.5, 0.3, 0.2), parts, strict=True))
    torch.testing.assert_close(found[name], by_hand)
    assert (ours - plain).abs().max() > 1e-2


def test_a_merge_stands_beside_quantized_weights(tiny_nf4, adapters, batch):  # noqa: F811
    model, _, components = tiny_nf4
    attached = load_adapter(adapters["lora"], model, components)
    ours = logits(model, batch)
    attached.detach()
    merged = Merged((adapters["lora"],), "average")
    attached = attach(Plan(projector=merged, language=merged), model, components)
    torch.testing.assert_close(logits(model, batch), ours, rtol=1e-3, atol=5e-3)


def test_a_merge_is_scored_from_a_config_as_the_adapter_itself_is(adapters, pictures, capsys):
    """`test` without --adapter scores what the plan is before training: the base, and a merge on it."""
    data = write_json(pictures / "scored.json", [llava(image=f"{name}.png") for name in "abc"])
    splits = [f"--data.{name}={data}" for name in ("train", "val", "test")]
    bits = "--model.base.bits.language=fp32"
    merged = f"{{class_path: Merged, init_args: {{adapters: [{adapters['lora']}], rule: average}}}}"
    plan = [f"--model.plan.{name}={merged}" for name in ("projector", "language")]
    losses = []
    for args in (["--adapter", adapters["lora"]], plan, ["--model.plan.language=LoRA"]):
        capsys.readouterr()
        assert call("test", "--config=lora_r16.yaml", bits, *splits, *args) == 0
        losses.append(json.loads(capsys.readouterr().out.splitlines()[-1])["test/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] != pytest.approx(losses[0], rel=1e-2)
