"""A merged checkpoint answers as the adapter does, without this package."""

import inspect
import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmpeft.base.spec import BaseSpec, base_dir
from vlmpeft.evaluation.equivalence import TOLERANCE, compare
from vlmpeft.export.answer_gate import Gate
from vlmpeft.export.checkpoint import add_to_weights
from vlmpeft.export.reload import load_checkpoint
from vlmpeft.strategies import Full, LoRA
from vlmpeft.strategies.low_rank import LowRank
from vlmpeft.strategies.plan import Plan

from ..exports import (  # noqa: F401  fixtures
    FP32,
    PLANS,
    adapted,
    base,
    export,
    exported,
    line,
    questions,
    report_of,
    save,
    saved,
    trial_of,
)

# ruff: noqa: F811  fixtures are imported

SHARDS = ("--max_shard_size", "2MB")


def stranger(folder, picture):
    """(logits of the first answered token, greedy answer): by transformers alone, its source runs without this package."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    question = [{"type": "image"}, {"type": "text", "text": "what part is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    inputs = processor(text=[text], images=[Image.open(picture)], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
        ids = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return logits.tolist(), processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


ALONE = """
import json, sys, torch
if not torch.cuda.is_available():
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
{stranger}
found = stranger(*sys.argv[1:])
assert not [name for name in sys.modules if name.startswith("vlmpeft")]
print(json.dumps(found))
"""


@pytest.fixture
def assert_as_attached(saved, questions, pictures):
    """Assert that what a stranger found is what the adapter answers, and not the base."""
    model, processor, _ = base(FP32)
    trial = trial_of(questions, pictures, processor, number=1)
    alone = trial.answers(model).logits[0][0]
    with adapted(saved("recipe")) as (model, _):
        ours = trial.answers(model)

    def check(logits, text):
        assert text == ours.texts[0]
        torch.testing.assert_close(torch.tensor(logits), ours.logits[0][0], rtol=1e-4, atol=1e-3)
        assert (alone - torch.tensor(logits)).abs().max() > 0.1

    return check


def test_a_merged_checkpoint_answers_the_same_by_transformers_alone(
    exported, pictures, assert_as_attached
):
    assert_as_attached(*stranger(exported("recipe", "merged", *SHARDS), pictures / "a.png"))


@pytest.mark.slow
def test_a_merged_checkpoint_answers_the_same_without_this_package(
    tmp_path, exported, pictures, assert_as_attached
):
    script = ALONE.format(stranger=inspect.getsource(stranger))
    args = [exported("recipe", "merged", *SHARDS), pictures / "a.png"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_as_attached(*json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", ["recipe", "several"])
def test_every_trained_tensor_changes_a_weight_and_nothing_else_is_changed(saved, exported, name):
    folder, out = saved(name), exported(name, "merged", *SHARDS)
    report = report_of(out)
    trained = json.loads((folder / "manifest.json").read_text())["tensors"]
    assert report["tensors"].keys() == trained.keys() != set()
    assert all(report["tensors"].values())
    assert not report["not_exported"]
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 1
    assert not list(out.glob("*.bin"))
    merged = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    base = AutoModelForImageTextToText.from_pretrained(base_dir("tiny")).state_dict()
    changed = {n for names in report["tensors"].values() for n in names}
    assert merged.keys() == base.keys() > changed
    assert {n for n in base if not torch.equal(base[n], merged[n])} == changed
    gate = report["gate"]
    assert gate["passed"]
    assert gate["max_logit"] < 5e-3 < 0.1 < gate["effect_of_adapter"]["max_logit"]


def test_the_gate_stops_a_merge_and_leaves_nothing(tmp_path, saved, questions, capsys):
    before = Counter(path.name for path in tmp_path.iterdir())
    assert export(saved("recipe"), "merged", tmp_path / "m", *questions, "--tolerance", "1e-9") == 4
    assert "above the tolerance 1e-09" in line(capsys)
    assert Counter(path.name for path in tmp_path.iterdir()) == before


def test_the_gate_sees_one_dw_that_was_left_out(saved, questions, pictures):
    model, processor, _ = base(FP32)
    trial = trial_of(questions, pictures, processor)
    alone = trial.answers(model)
    with adapted(saved("recipe")) as (model, attached):
        ours, deltas = trial.answers(model), attached.products()
    for left_out, passes in ([], True), ([list(deltas)[4]], False):
        merged = load_checkpoint("tiny")
        add_to_weights(merged, {n: d for n, d in deltas.items() if n not in left_out})
        gate = Gate(compare(ours, trial.answers(merged)), compare(ours, alone), TOLERANCE["fp32"])
        assert (not gate.failures) == passes


@pytest.mark.parametrize(
    "onto",
    [*(pytest.param(o, marks=pytest.mark.slow) for o in ("full", "dequantized")), "quantized"],
)
def test_routes_of_an_adapter_of_a_quantized_base(tmp_path, saved, questions, capsys, onto):
    folder, out = saved("nf4"), tmp_path / "m"
    capsys.readouterr()
    args = ["--tolerance", "1000"] if onto == "quantized" else []
    assert export(folder, "merged", out, *questions, "--onto", onto, *args, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report == report_of(out)
    rows = {row["route"]: row for row in report["routes"]}
    assert rows["attached, as trained"]["max_logit"] == 0
    assert rows["merged, dequantized, fp32"]["max_logit"] < 5e-3
    assert rows["merged, fp32"]["max_logit"] > 0.1
    assert rows["merged, quantized again, nf4"]["max_logit"] > 0.1
    near = abs(rows["merged, fp32"]["mean_kl"] - rows["attached, fp32"]["mean_kl"])
    assert near < 1e-3 < rows["no adapter, as trained"]["mean_kl"]
    assert sum(row["written"] for row in rows.values()) == 1
    packed = [t.dtype for t in load_file(out / "model.safetensors").values()].count(torch.uint8)
    assert bool(packed) == (onto == "quantized")
    if onto == "full":
        assert "merged into the checkpoint's own fp32 weights" in report["notes"][0]


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A base whose head is its token embeddings."""
    model = AutoModelForImageTextToText.from_pretrained(base_dir("tiny"))
    for config in (model.config, model.config.text_config):
        config.tie_word_embeddings = True
    model.tie_weights()
    folder = tmp_path_factory.mktemp("tied")
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(base_dir("tiny")).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("plan", "stays_tied"),
    [
        (Plan(language=Full()), True),
        (Plan(language=LoRA(r=4, targets=("lm_head", "q_proj"))), False),
    ],
    ids=["both change", "the head alone changes"],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_tied_weights_stay_right(tmp_path, tied, questions, plan, stays_tied):
    spec, out = BaseSpec(tied, FP32.bits), tmp_path / "m"
    folder = save(tmp_path / "adapter", plan, spec, scale=0.02)
    assert export(folder, "merged", out, *questions) == 0
    assert report_of(out)["gate"]["max_logit"] < 5e-3
    model = load_checkpoint(str(out))
    head, words = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is words) == stays_tied == torch.equal(head, words)


@pytest.mark.slow
def test_a_merge_into_bf16_is_within_its_tolerance_and_a_lost_adapter_is_not(
    tmp_path, questions, capsys
):
    model = AutoModelForImageTextToText.from_pretrained(base_dir("tiny"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    AutoProcessor.from_pretrained(base_dir("tiny")).save_pretrained(tmp_path / "base")
    spec = BaseSpec(str(tmp_path / "base"), FP32.bits)
    folder = save(tmp_path / "adapter", PLANS["recipe"][0], spec)
    assert export(folder, "merged", tmp_path / "m", *questions) == 0
    gate = report_of(tmp_path / "m")["gate"]
    assert gate["reference"] == "attached, bf16"
    assert 0 < gate["max_logit"] < 0.5
    dtypes = {t.dtype for t in load_file(tmp_path / "m/model.safetensors").values()}
    assert dtypes == {torch.bfloat16}
    faint = save(tmp_path / "faint", Plan(language=LoRA(r=4)), spec, scale=3e-4)
    assert export(faint, "merged", tmp_path / "n", *questions) == 4
    assert "more than half of what the adapter itself does" in line(capsys)


def test_dw_is_added_in_fp32_and_rounded_once():
    model = torch.nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    weight, b, a = model.weight.detach().clone(), torch.full((2, 1), 1e-3), torch.ones(1, 2)
    add_to_weights(model, {"weight": LowRank(b, a)})
    assert torch.equal(model.weight, (weight.float() + b @ a).to(torch.bfloat16))
