"""What `plan --for` says of an engine is what its loader does."""

import json

import pytest
from peft import PeftModel

from vlmpeft.adapters.peft_form import is_expressible_in_peft
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.preflight.servability import judge
from vlmpeft.strategies import BottleneckAdapter, DoRA, Full, LayerNormTuning, LoRA
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import call, vlmpeft

FP32 = BaseSpec(bits=Bits(language="fp32"))
PLANS = {
    "recipe": (
        Plan(projector=Full(), language=LoRA()),
        True,
        {"projector": False, "language": True},
    ),
    "servable": (
        Plan(projector=LoRA(), language=LoRA()),
        True,
        {"projector": True, "language": True},
    ),
    "dora": (Plan(language=DoRA()), True, {"language": False}),
    "projector alone": (Plan(projector=Full()), False, {"projector": False}),
    "bottleneck": (Plan(language=BottleneckAdapter()), False, {"language": False}),
    "two kinds": (
        Plan(projector=LoRA(rslora=True), language=LoRA()),
        False,
        {"projector": False, "language": False},
    ),
    "two on one": (Plan(language=[LoRA(), LayerNormTuning()]), False, {"language": False}),
    "unequal scales": (
        Plan(projector=LoRA(r=8, alpha=8), language=LoRA(r=8, alpha=16)),
        True,
        {"projector": False, "language": False},
    ),
}


@pytest.mark.parametrize(("plan", "in_peft", "in_vllm"), PLANS.values(), ids=PLANS.keys())
def test_verdicts(tiny, tmp_path, plan, in_peft, in_vllm):
    model, processor, components = tiny
    attached = attach(plan, model, components)
    peft = judge(attached, "peft")
    assert all(v.is_loadable for v in peft.values()) == in_peft == is_expressible_in_peft(attached)
    vllm = judge(attached, "vllm")
    assert {name: v.is_loadable for name, v in vllm.items()} == in_vllm
    assert all(v.reason for v in (*peft.values(), *vllm.values()) if not v.is_loadable)
    folder = save_adapter(tmp_path / "a", attached, processor=processor, base=origin(FP32))
    if in_peft:
        PeftModel.from_pretrained(load_base(FP32)[0], folder)
    else:
        assert not (folder / "adapter_config.json").exists()


def test_vllm_is_told_the_rank_and_the_flag_it_needs(tiny):
    model, _, components = tiny
    found = judge(attach(Plan(vision=LoRA(r=4), language=LoRA(r=40)), model, components), "vllm")
    assert found["language"].reason == "with --max-lora-rank 64"
    assert "--enable-tower-connector-lora" in found["vision"].reason


def test_plan_for_an_engine_exits_with_4_if_it_cannot_load_it(capsys):
    assert call("plan", "--config", "lora_r16.yaml", "--for", "vllm") == 4
    assert "vllm, projector: no" in capsys.readouterr().out
    assert call("plan", "--config", "lora_servable_r16.yaml", "--for=vllm", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["for"]["vllm"]["language"]["is_loadable"]


@pytest.mark.slow
def test_serve_with_stops_a_fit_before_anything_is_scored_or_trained(tmp_path):
    args = ["fit", "--config=lora_r16.yaml", f"--runs_dir={tmp_path}", "--run_name=x"]
    done = vlmpeft(*args, "--model.serve_with=vllm", cwd=tmp_path, check=2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vlmpeft:")]
    assert "serve_with=vllm" in line
    assert "projector: vLLM loads LoRA alone" in line
    assert not (tmp_path / "x" / "adapter").exists()
