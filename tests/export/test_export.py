"""What cannot be exported is refused by name, and what is compared is what was measured."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlmpeft.evaluation.equivalence import Answers, Difference, compare
from vlmpeft.export.answer_gate import Gate
from vlmpeft.export.checkpoint import add_to_weights
from vlmpeft.merging.strategy import Merged
from vlmpeft.strategies import LoRA
from vlmpeft.strategies.deltas import add_deltas
from vlmpeft.strategies.plan import Plan

from ..conftest import write_json
from ..exports import FP32, adapter, export, line, save, saved  # noqa: F401  fixtures

# ruff: noqa: F811  fixtures are imported


def test_a_form_that_loses_the_adapter_fails_however_small_it_is():
    small, none = Difference(0.1, 1e-3, 1, 1), Difference(0.01, 1e-5, 1, 1)
    assert not Gate(none, small, 0.5).failures
    assert "more than half" in Gate(small, small, 0.5).failures[0]
    assert not Gate(small, small, 0.5, alone=True).failures
    assert Gate(Difference(float("nan"), float("nan"), 0, 0), small, 0.5, alone=True).failures


def test_the_measures_are_those_computed_by_hand():
    first = Answers([torch.tensor([[0.0, 1.0]])], [torch.tensor([1])], ["a", "b"], ["a", "c"])
    other = Answers([torch.tensor([[3.0, 1.0]])], [torch.tensor([1])], ["a", "x"], ["a", "c"])
    p, q = torch.tensor([0.0, 1.0]).softmax(0), torch.tensor([3.0, 1.0]).softmax(0)
    found = compare(first, other)
    assert found.max_logit == 3
    assert found.mean_kl == pytest.approx((p * (p / q).log()).sum().item())
    assert found.mean_kl != pytest.approx((q * (q / p).log()).sum().item(), rel=0.1)
    assert (found.argmax_agreement, found.text_agreement) == (0, 0.5)
    assert first.loss == pytest.approx(-p[1].log().item())
    assert first.exact_match == 0.5


def test_dw_is_added_in_fp32_and_rounded_once():
    """1 + 2^-8 + 2^-16 is above half of bf16's next step, 2^-7; dW in bf16 would be 2^-8, and a tie goes to 1."""
    delta = torch.tensor([[2**-8 + 2**-16]])
    merged, beside = (nn.Linear(1, 1, bias=False, dtype=torch.bfloat16) for _ in range(2))
    for layer in (merged, beside):
        nn.init.ones_(layer.weight)
    add_to_weights(merged, {"weight": delta})
    add_deltas(beside, {"weight": delta})
    assert merged.weight.item() == beside.weight.item() == 1 + 2**-7
    assert merged.weight.dtype == torch.bfloat16


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
        ("recipe", "peft", ["--onto", "full"], "--onto has no effect on --to peft"),
        ("recipe", "peft", ["--samples", "0"], "--samples 0 is not a number of samples"),
        ("recipe", "merged", ["--onto", "quantized"], "was trained on fp32 weights"),
        ("recipe", "merged", ["--base", "nowhere"], "base nowhere is not a folder"),
        ("recipe", "merged", ["--data", "nowhere.json"], "data file nowhere.json does not exist"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(
    tmp_path, saved, capsys, name, to, args, message
):
    assert export(saved(name), to, tmp_path / "out", *args) == 2
    assert message in line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_merge_beside_a_trained_lora_is_not_left_out_in_silence(tmp_path, saved, capsys):
    first = saved("projector")
    plan = Plan(projector=Merged((str(first),), "average"), language=LoRA(r=2))
    folder = save(tmp_path / "beside", plan, FP32)
    assert not (folder / "adapter_config.json").exists()
    assert export(folder, "peft", tmp_path / "out") == 2
    assert "projector: Merged has no form in plain PEFT" in line(capsys)


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
