"""What is exported to PEFT or vLLM answers as the adapter does, by plain PEFT, or is not written."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.base.spec import base_dir

from ..exports import (  # noqa: F401  fixtures
    FP32,
    adapted,
    adapter,
    base,
    export,
    exported,
    questions,
    report_of,
    saved,
)
from ..strategies.test_strategies import batch, logits  # noqa: F401  a fixture

# ruff: noqa: F811  fixtures are imported


@pytest.fixture
def assert_as_in_peft(saved, batch):
    """Assert that plain PEFT, which we have no part in here, makes the adapter's logits of a folder."""

    def check(name, out):
        with adapted(saved(name)) as (model, _):
            ours = logits(model, batch)
        base = AutoModelForImageTextToText.from_pretrained(base_dir("tiny"))
        plain = logits(base, batch)
        theirs = logits(PeftModel.from_pretrained(base, out), batch)
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)
        assert (plain - ours).abs().max() > 0.1

    return check


def test_plain_peft_loads_a_peft_export_with_the_same_logits(saved, exported, assert_as_in_peft):
    assert not (saved("mixed") / "adapter_config.json").exists()
    assert_as_in_peft("mixed", exported("mixed", "peft"))
    assert AutoProcessor.from_pretrained(exported("mixed", "peft")).chat_template


@pytest.mark.parametrize("name", ["recipe", "dora", "nf4"])
def test_a_peft_export_of_a_peft_adapter_is_bitwise_the_adapter(saved, exported, name):
    out = exported(name, "peft")
    ours, theirs = Adapter.read(saved(name)).tensors, Adapter.read(out).tensors
    assert ours.keys() == theirs.keys() == report_of(out)["tensors"].keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base_dir("tiny")


def test_a_vllm_export_has_one_scale_and_the_line_that_serves_it(exported, assert_as_in_peft):
    """Of unequal ranks and scales; what vLLM computes of r and alpha is what plain PEFT computes."""
    out = exported("lora", "vllm")
    config = json.loads((out / "adapter_config.json").read_text())
    assert not config["modules_to_save"]
    assert not config["use_rslora"]
    ranks, alphas = config["rank_pattern"], config["alpha_pattern"]
    targets = config["target_modules"]
    scales = {alphas.get(t, config["lora_alpha"]) / ranks.get(t, config["r"]) for t in targets}
    assert scales == {config["lora_alpha"] / config["r"]}
    assert_as_in_peft("lora", out)
    vllm = report_of(out)["vllm"]
    assert "--max-lora-rank 16 --enable-tower-connector-lora" in vllm["serve"]
    served = f"vllm serve {base_dir('tiny')} --enable-lora --lora-modules {out.name}@"
    assert vllm["serve"].startswith(served)
    assert f"={out} " in vllm["serve"]
    assert len(vllm["ignored"]) == 2


def test_a_trained_projector_becomes_a_lora_whose_loss_is_told(saved, exported):
    folder, out = saved("recipe"), exported("recipe", "vllm", "--projector", "svd:16")
    report = report_of(out)
    biases = [f"base_model.model.model.multi_modal_projector.linear_{n}.bias" for n in (1, 2)]
    assert list(report["not_exported"]) == biases
    assert all(
        "no LoRA carries it; its dW had norm" in why for why in report["not_exported"].values()
    )
    trained = json.loads((folder / "manifest.json").read_text())["tensors"]
    assert report["tensors"].keys() | report["not_exported"].keys() == trained.keys()
    weight = "model.multi_modal_projector.linear_1.weight"
    delta = (
        Adapter.read(folder).tensors[f"base_model.model.{weight}"]
        - base(FP32)[0].state_dict()[weight]
    )
    kept = torch.linalg.svdvals(delta)[:16].square().sum() / delta.square().sum()
    assert report["projector"]["energy_by_weight"][weight] == pytest.approx(float(kept), rel=2e-2)
    assert report["projector"]["change"]["max_logit"] > 1e-3
    assert all(name.split(".lora_")[1] for name in Adapter.read(out).tensors)


def test_a_projector_s_lora_of_full_rank_is_the_projector_but_for_its_biases(
    tmp_path, adapter, questions
):
    folder = adapter("projector")
    tensors = load_file(folder / "adapter.safetensors")
    own = base(FP32)[0].state_dict()
    biases = {n: own[n.removeprefix("base_model.model.")] for n in tensors if n.endswith("bias")}
    save_file(tensors | biases, folder / "adapter.safetensors")
    assert export(folder, "peft", tmp_path / "p", "--projector", "svd:128", *questions) == 0
    found = report_of(tmp_path / "p")["projector"]
    assert found["energy"] == pytest.approx(1, abs=1e-5)
    assert found["lost"] == {}
    assert found["change"]["max_logit"] < 1e-3
