"""What is exported answers as the adapter does, without this package, and what cannot be is refused by name."""

import json
import resource
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmpeft.adapters import load_adapter, read_tensors, save_adapter
from vlmpeft.base import BaseSpec, Bits, base_dir, load_base, origin
from vlmpeft.data.encode import Encoder
from vlmpeft.decoding import Limits
from vlmpeft.equivalence import (
    TOLERANCE,
    Answers,
    Difference,
    Gate,
    Trial,
    compare,
    encode_items,
    read_items,
)
from vlmpeft.export import add_to_weights, load_checkpoint, written_whole
from vlmpeft.merging.merged import Merged
from vlmpeft.plan import Plan, attach
from vlmpeft.strategies import (
    BitFit,
    BottleneckAdapter,
    DoRA,
    Full,
    LayerNormTuning,
    LoRA,
    PromptTuning,
)
from vlmpeft.strategies.low_rank import LowRank

from .conftest import call, llava, randomize, write_json
from .test_strategies import batch, logits  # noqa: F401  a fixture

FP32 = BaseSpec(bits=Bits(language="fp32"))
PLANS = {
    "recipe": (Plan(projector=Full(), language=LoRA(r=4)), FP32),
    "several": (
        Plan(
            vision=BitFit(),
            projector=DoRA(r=2),
            language=[LayerNormTuning(), LoRA(r=3, rslora=True, targets=("q_proj",))],
        ),
        FP32,
    ),
    "nf4": (Plan(projector=Full(), language=LoRA(r=4)), BaseSpec()),
    "lora": (Plan(vision=LoRA(r=4, alpha=4), projector=LoRA(r=2), language=LoRA(r=12)), FP32),
    "mixed": (Plan(projector=LoRA(r=2, rslora=True), language=LoRA(r=4)), FP32),
    "dora": (Plan(language=DoRA(r=2)), FP32),
    "prompt": (Plan(vision=BottleneckAdapter(), language=PromptTuning(n=2)), FP32),
    "projector": (Plan(projector=Full()), FP32),
}


@pytest.fixture
def questions(pictures):
    """Options: three samples about the pictures."""
    records = [llava(image=f"{name}.png", answer=f"gear {name}") for name in "abc"]
    path = write_json(pictures / "questions.json", records)
    return ["--data", path, "--image_dir", str(pictures), "--samples", "3"]


def save(folder, plan, spec, scale=0.05):
    model, processor, components = load_base(spec)
    attached = attach(plan, model, components)
    randomize(attached, scale)
    decoding = {"max_new_tokens": 5, "end_ids": [1]}
    return save_adapter(folder, attached, processor=processor, base=origin(spec), decoding=decoding)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Name -> randomized adapter, made once."""
    return cache(lambda name: save(tmp_path_factory.mktemp(name) / "adapter", *PLANS[name]))


@pytest.fixture
def adapter(saved, tmp_path):
    """Name in PLANS -> a copy of that adapter."""
    return lambda name: Path(shutil.copytree(saved(name), tmp_path / "adapter"))


def export(folder, to, out, *args):
    return call("export", "--adapter", folder, "--to", to, "--out", out, *args)


def line(capsys):
    (found,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("vlmpeft:")]
    return found


def trial_of(questions, pictures, processor, number=3):
    items = read_items(questions[1], str(pictures), number)
    return Trial(encode_items(items, Encoder(processor)), processor.tokenizer, Limits(5, (1,), 0))


def report_of(out):
    return json.loads((out / "export.json").read_text())


# loads a checkpoint without this package, and says what it answers
STRANGER = """
import json, sys, torch
{torchvision}
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
out, picture = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(out)
processor = AutoProcessor.from_pretrained(out)
chat = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "what part is it?"}}]}}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(text=[text], images=[Image.open(picture)], return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0, -1]
    ids = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1]:]
assert not [name for name in sys.modules if name.startswith("vlmpeft")]
print(json.dumps({{"logits": logits.tolist(), "text": processor.tokenizer.decode(ids, skip_special_tokens=True).strip()}}))
"""
TORCHVISION = """
if not torch.cuda.is_available():
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def test_a_merged_checkpoint_answers_the_same_without_this_package(
    tmp_path, adapter, questions, pictures
):
    folder, out = adapter("recipe"), tmp_path / "m"
    assert export(folder, "merged", out, *questions) == 0
    script = STRANGER.format(torchvision=TORCHVISION)
    args = [sys.executable, "-c", script, str(out), str(pictures / "a.png")]
    done = subprocess.run(args, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    model, processor, components = load_base(FP32)
    trial = trial_of(questions, pictures, processor, number=1)
    base = trial.answers(model)
    load_adapter(folder, model, components)
    ours = trial.answers(model)
    assert theirs["text"] == ours.texts[0]
    got = torch.tensor(theirs["logits"])
    torch.testing.assert_close(got, ours.logits[0][0], rtol=1e-4, atol=1e-3)
    assert (base.logits[0][0] - got).abs().max() > 0.1


@pytest.mark.parametrize("name", ["recipe", "several"])
def test_every_trained_tensor_changes_a_weight_and_nothing_else_is_changed(
    tmp_path, adapter, questions, name
):
    folder, out = adapter(name), tmp_path / "m"
    assert export(folder, "merged", out, *questions, "--max_shard_size", "2MB") == 0
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


def test_the_gate_stops_a_merge_and_leaves_nothing(tmp_path, adapter, questions, capsys):
    folder = adapter("recipe")
    before = Counter(path.name for path in tmp_path.iterdir())
    assert export(folder, "merged", tmp_path / "m", *questions, "--tolerance", "1e-9") == 4
    assert "above the tolerance 1e-09" in line(capsys)
    assert Counter(path.name for path in tmp_path.iterdir()) == before


def test_the_gate_sees_one_dw_that_was_left_out(adapter, questions, pictures):
    model, processor, components = load_base(FP32)
    trial = trial_of(questions, pictures, processor)
    alone = trial.answers(model)
    attached = load_adapter(adapter("recipe"), model, components)
    ours, deltas = trial.answers(model), attached.products()
    for left_out, passes in ([], True), ([list(deltas)[4]], False):
        merged = load_checkpoint("tiny")
        add_to_weights(merged, {n: d for n, d in deltas.items() if n not in left_out})
        gate = Gate(compare(ours, trial.answers(merged)), compare(ours, alone), TOLERANCE["fp32"])
        assert (not gate.failures) == passes


def test_a_form_that_loses_the_adapter_fails_however_small_it_is():
    small, none = Difference(0.1, 1e-3, 1, 1), Difference(0.01, 1e-5, 1, 1)
    assert not Gate(none, small, 0.5).failures
    assert "more than half" in Gate(small, small, 0.5).failures[0]
    assert not Gate(small, small, 0.5, alone=True).failures
    assert Gate(Difference(float("nan"), float("nan"), 0, 0), small, 0.5, alone=True).failures


def test_the_measures_are_those_computed_by_hand():
    first = Answers([torch.tensor([[0.0, 1.0]])], [torch.tensor([1])], ["a", "b"], ["a", "c"])
    other = Answers([torch.tensor([[2.0, 1.0]])], [torch.tensor([1])], ["a", "x"], ["a", "c"])
    p, q = torch.tensor([0.0, 1.0]).softmax(0), torch.tensor([2.0, 1.0]).softmax(0)
    found = compare(first, other)
    assert found.max_logit == 2
    assert found.mean_kl == pytest.approx((p * (p / q).log()).sum().item())
    assert (found.argmax_agreement, found.text_agreement) == (0, 0.5)
    assert first.loss == pytest.approx(-p[1].log().item())
    assert first.exact_match == 0.5


@pytest.mark.parametrize(
    "onto",
    [*(pytest.param(o, marks=pytest.mark.slow) for o in ("full", "dequantized")), "quantized"],
)
def test_routes_of_an_adapter_of_a_quantized_base(tmp_path, adapter, questions, capsys, onto):
    folder, out = adapter("nf4"), tmp_path / "m"
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


def test_plain_peft_loads_a_peft_export_with_the_same_logits(tmp_path, adapter, tiny, batch):  # noqa: F811
    model, _, components = tiny
    folder = adapter("mixed")
    assert not (folder / "adapter_config.json").exists()
    load_adapter(folder, model, components)
    ours = logits(model, batch)
    assert export(folder, "peft", tmp_path / "p") == 0
    base = AutoModelForImageTextToText.from_pretrained(base_dir("tiny"))
    plain = logits(base, batch)
    theirs = logits(PeftModel.from_pretrained(base, tmp_path / "p"), batch)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)
    assert (plain - ours).abs().max() > 0.1
    assert AutoProcessor.from_pretrained(tmp_path / "p").chat_template


@pytest.mark.parametrize("name", ["recipe", "lora", "dora"])
def test_a_peft_export_of_a_peft_adapter_is_bitwise_the_adapter(tmp_path, adapter, name):
    folder, out = adapter(name), tmp_path / "p"
    assert export(folder, "peft", out) == 0
    ours, theirs = read_tensors(folder), read_tensors(out)
    assert ours.keys() == theirs.keys() == report_of(out)["tensors"].keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base_dir("tiny")


def test_a_vllm_export_has_one_scale_and_the_line_that_serves_it(tmp_path, adapter, tiny, batch):  # noqa: F811
    """Of unequal ranks and scales; what vLLM computes of r and alpha is what plain PEFT computes."""
    model, _, components = tiny
    folder, out = adapter("lora"), tmp_path / "v"
    load_adapter(folder, model, components)
    ours = logits(model, batch)
    assert export(folder, "vllm", out) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert not config["modules_to_save"]
    assert not config["use_rslora"]
    ranks, alphas = config["rank_pattern"], config["alpha_pattern"]
    targets = config["target_modules"]
    scales = {alphas.get(t, config["lora_alpha"]) / ranks.get(t, config["r"]) for t in targets}
    assert scales == {config["lora_alpha"] / config["r"]}
    base = load_base(FP32)[0]
    theirs = logits(PeftModel.from_pretrained(base, out), batch)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)
    vllm = report_of(out)["vllm"]
    assert "--max-lora-rank 16 --enable-tower-connector-lora" in vllm["serve"]
    assert vllm["serve"].startswith(
        f"vllm serve {base_dir('tiny')} --enable-lora --lora-modules v@"
    )
    assert f"={out} " in vllm["serve"]
    assert len(vllm["ignored"]) == 2


def test_a_trained_projector_becomes_a_lora_whose_loss_is_told(tmp_path, adapter, questions):
    folder, out = adapter("recipe"), tmp_path / "v"
    assert export(folder, "vllm", out, "--projector", "svd:16", *questions) == 0
    report = report_of(out)
    biases = [f"base_model.model.model.multi_modal_projector.linear_{n}.bias" for n in (1, 2)]
    assert list(report["not_exported"]) == biases
    assert all(
        "no LoRA carries it; its dW had norm" in why for why in report["not_exported"].values()
    )
    trained = json.loads((folder / "manifest.json").read_text())["tensors"]
    assert report["tensors"].keys() | report["not_exported"].keys() == trained.keys()
    weight = "model.multi_modal_projector.linear_1.weight"
    base = load_base(FP32)[0].state_dict()[weight]
    delta = read_tensors(folder)[f"base_model.model.{weight}"] - base
    kept = torch.linalg.svdvals(delta)[:16].square().sum() / delta.square().sum()
    assert report["projector"]["energy_by_weight"][weight] == pytest.approx(float(kept), rel=2e-2)
    assert report["projector"]["change"]["max_logit"] > 1e-3
    assert all(name.split(".lora_")[1] for name in read_tensors(out))


def test_a_projector_s_lora_of_full_rank_is_the_projector_but_for_its_biases(
    tmp_path, adapter, questions
):
    folder = adapter("projector")
    tensors = load_file(folder / "adapter.safetensors")
    base = load_base(FP32)[0].state_dict()
    biases = {n: base[n.removeprefix("base_model.model.")] for n in tensors if n.endswith("bias")}
    save_file(tensors | biases, folder / "adapter.safetensors")
    assert export(folder, "peft", tmp_path / "p", "--projector", "svd:128", *questions) == 0
    found = report_of(tmp_path / "p")["projector"]
    assert found["energy"] == pytest.approx(1, abs=1e-5)
    assert found["lost"] == {}
    assert found["change"]["max_logit"] < 1e-3


@pytest.fixture
def tied(tmp_path):
    """A base whose head is its token embeddings."""
    model = AutoModelForImageTextToText.from_pretrained(base_dir("tiny"))
    for config in (model.config, model.config.text_config):
        config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "base")
    AutoProcessor.from_pretrained(base_dir("tiny")).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


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


@pytest.mark.parametrize(
    ("name", "to", "args", "message"),
    [
        (
            "prompt",
            "merged",
            [],
            "BottleneckAdapter on vision, PromptTuning on language is no change",
        ),
        ("prompt", "peft", [], "PromptTuning has no form in plain PEFT"),
        ("several", "peft", [], "--to merged writes a whole checkpoint"),
        ("recipe", "vllm", [], "--projector svd:64 turns the projector's change into LoRA"),
        ("dora", "vllm", [], "language: vLLM refuses DoRA"),
        ("projector", "peft", [], "projector: PEFT needs a LoRA part"),
        ("lora", "vllm", ["--projector", "svd:4"], "the projector has a LoRA already"),
        ("dora", "vllm", ["--projector", "svd:4"], "leaves the projector alone"),
        ("recipe", "vllm", ["--projector", "4"], "give svd:R"),
        ("recipe", "peft", ["--tolerance", "1"], "--tolerance has no effect on --to peft"),
        ("recipe", "peft", ["--samples", "0"], "'0' is not a number of samples"),
        ("recipe", "merged", ["--onto", "quantized"], "was trained on fp32 weights"),
        ("recipe", "merged", ["--base", "nowhere"], "base nowhere is not a folder"),
        ("recipe", "merged", ["--data", "nowhere.json"], "data file nowhere.json does not exist"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(
    tmp_path, adapter, capsys, name, to, args, message
):
    folder = adapter(name)
    assert export(folder, to, tmp_path / "out", *args) == 2
    assert message in line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_merge_beside_a_trained_lora_is_not_left_out_in_silence(tmp_path, adapter, capsys):
    first = adapter("projector")
    plan = Plan(projector=Merged((str(first),), "average"), language=LoRA(r=2))
    folder = save(tmp_path / "beside", plan, FP32)
    assert not (folder / "adapter_config.json").exists()
    assert export(folder, "peft", tmp_path / "out") == 2
    assert "projector: Merged has no form in plain PEFT" in line(capsys)


def test_a_folder_that_exists_is_not_touched(tmp_path, adapter, capsys):
    folder = adapter("lora")
    (tmp_path / "out").mkdir()
    assert export(folder, "vllm", tmp_path / "out") == 2
    assert "exists already; nothing was written" in line(capsys)
    assert not list((tmp_path / "out").iterdir())


def _without_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def _without_a_tensor(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path)


def _cut_short(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _as_a_pickle(folder):
    _without_weights(folder)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


def _with_a_number(value):
    def change(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors[max(tensors)].view(-1)[0] = value
        save_file(tensors, path)

    return change


def _without_a_plan(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["plan"]
    write_json(folder / "manifest.json", manifest)


def _of_another_base(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["base"]["fingerprint"] = "0" * 16
    write_json(folder / "manifest.json", manifest)


@pytest.mark.parametrize(
    ("to", "damage", "message"),
    [
        ("merged", _without_weights, "has no weights"),
        ("vllm", _without_a_tensor, "is not in it; copy or train"),
        ("merged", _cut_short, "adapter_model.safetensors is broken"),
        ("peft", _as_a_pickle, "adapter_model.bin, a pickle"),
        (
            "peft",
            _with_a_number(float("nan")),
            "self_attn.v_proj.lora_B.weight in adapter_model.safetensors holds a NaN",
        ),
        ("merged", _with_a_number(float("inf")), "holds an infinity"),
        ("merged", _without_a_plan, "manifest.json lacks plan"),
        ("vllm", _of_another_base, "belongs to base tiny"),
    ],
)
def test_a_broken_adapter_is_one_line_and_nothing_is_written(
    tmp_path, adapter, capsys, to, damage, message
):
    folder = adapter("lora")
    damage(folder)
    assert export(folder, to, tmp_path / "out") == 2
    assert message in line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_disk_that_takes_no_more_is_one_line_and_nothing_is_left(
    tmp_path, adapter, questions, capsys
):
    folder = adapter("recipe")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        assert export(folder, "merged", tmp_path / "out", *questions) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written" in line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_interrupted_export_leaves_nothing(tmp_path):
    def interrupted():
        with written_whole(tmp_path / "out") as scratch:
            (scratch / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_under_the_name(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom vlmpeft.export import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as scratch:\n"
        "    (scratch / 'config.json').write_text('{}')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    args = [sys.executable, "-c", code, str(tmp_path / "out")]
    assert subprocess.run(args, check=False).returncode == -9
    assert not (tmp_path / "out").exists()
    assert [path.name.startswith(".out-") for path in tmp_path.iterdir()] == [True]
