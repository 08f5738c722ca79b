"""On a CUDA device: bf16 base, NF4 language model, fp32 trainables, bf16-mixed precision."""

import sys

import pytest
import torch

from vlmpeft.__main__ import main
from vlmpeft.base.loading import actual_bits, load_base
from vlmpeft.base.spec import BaseSpec
from vlmpeft.runtime.records import read_record
from vlmpeft.strategies import Full, LoRA
from vlmpeft.strategies.plan import Plan, attach

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # a device comes with its own versions of torch and drivers, and they with warnings of their own
    pytest.mark.filterwarnings("default"),
]


def test_base_is_bf16_and_nf4_and_trainables_are_fp32():
    model, _, components = load_base(BaseSpec(), "cuda")
    assert actual_bits(model, components) == {
        "vision": "bf16",
        "projector": "bf16",
        "language": "nf4 + bf16",
    }
    attached = attach(Plan(projector=Full(), language=LoRA()), model, components)
    assert {p.dtype for p in attached.trainable().values()} == {torch.float32}


def test_the_recipe_learns_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vlmpeft"])
    assert (
        main(["fit", "--config", "lora_r16.yaml", f"--runs_dir={tmp_path}", "--run_name=gpu"]) == 0
    )
    record = read_record(tmp_path / "gpu")
    assert record["config"]["trainer"]["precision"] == "bf16-mixed"
    assert record["metrics"]["tuned"]["test"]["exact_match"] >= 0.9
