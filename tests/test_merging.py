"""Merge rules against the golden vectors of their definitions, and a merge as a strategy."""

import json

import pytest
import torch

from vlmpeft.adapters import save_adapter
from vlmpeft.base import BaseSpec, Bits, load_base, origin
from vlmpeft.errors import UserError
from vlmpeft.merging import average, linear, task_arithmetic, ties
from vlmpeft.merging.merged import Merged
from vlmpeft.merging.operands import read_operand
from vlmpeft.plan import Plan, attach
from vlmpeft.strategies import BottleneckAdapter, DoRA, Full, LoRA
from vlmpeft.strategies.low_rank import dense

from .conftest import call, randomize
from .test_strategies import batch, logits  # noqa: F401  a fixture

BASE = BaseSpec(bits=Bits(language="fp32"))
TASKS = torch.tensor(
    [
        [0.90, -0.10, 0.50, 0.05, -3.00, 0.20, -0.80, 1.50, -0.01, 0.30],
        [-2.00, 0.40, 0.60, 0.11, 1.10, -0.70, 0.25, -1.20, 0.03, 0.02],
        [0.55, 0.35, -0.75, 2.10, 1.00, 0.15, -0.45, -0.60, 0.08, -0.95],
    ],
    dtype=torch.float64,
)
MEAN = [
    -0.183333,
    0.216667,
    0.116667,
    0.753333,
    -0.3,
    -0.116667,
    -0.333333,
    -0.1,
    0.033333,
    -0.21,
]
GOLDEN = {
    "mean": (
        average(TASKS),
        MEAN,
    ),
    "linear": (
        linear(TASKS),
        MEAN,
    ),
    "task arithmetic": (
        task_arithmetic(TASKS, lam=0.4),
        [-0.22, 0.26, 0.14, 0.904, -0.36, -0.14, -0.4, -0.12, 0.04, -0.252],
    ),
    "ties 20 %": (ties(TASKS, density=0.2), [-2, 0, 0, 2.1, -3, 0, 0, 1.5, 0, 0]),
    "ties 100 %": (
        ties(TASKS, density=1.0),
        [-2, 0.375, 0.55, 0.753333, -3, -0.7, -0.625, -0.9, 0.055, -0.95],
    ),
}


@pytest.mark.parametrize(("merged", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_rules_give_the_golden_vectors(merged, expected):
    torch.testing.assert_close(merged, torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_ties_does_not_depend_on_the_order_and_is_odd():
    for majority in ("mass", "frequency"):
        merged = ties(TASKS, density=0.5, majority=majority)
        torch.testing.assert_close(ties(TASKS[[2, 0, 1]], density=0.5, majority=majority), merged)
        torch.testing.assert_close(ties(-TASKS, density=0.5, majority=majority), -merged)
    assert ties(torch.tensor([[1.0, 2.0], [-1.0, 2.0]]), density=1.0).tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: ties(TASKS, density=0),
        lambda: ties(TASKS, density=1.1),
        lambda: ties(TASKS, weights=[1]),
        lambda: Merged(adapters=("a",), rule="average", density=0.2),
        lambda: Merged(adapters=()),
    ],
)
def test_bad_knobs_are_refused(call):
    with pytest.raises(UserError, match=r"density=|weights=|adapters="):
        call()


@pytest.fixture
def adapters(tiny, tmp_path):
    """Three adapters of different kinds on language and projector."""
    model, processor, components = tiny
    plans = {
        "lora": Plan(language=LoRA(r=4), projector=Full()),
        "dora": Plan(language=DoRA(r=2, targets=("q_proj", "v_proj"))),
        "low": Plan(language=LoRA(r=2, rslora=True)),
        "bottleneck": Plan(language=BottleneckAdapter()),
    }
    folders = {}
    for name, plan in plans.items():
        attached = attach(plan, model, components)
        randomize(attached)
        folders[name] = str(
            save_adapter(tmp_path / name, attached, processor=processor, base=origin(BASE))
        )
        attached.detach()
    return folders


@pytest.mark.parametrize("name", ["lora", "dora", "low"])
@pytest.mark.parametrize("rule", ["average", "linear", "task_arithmetic", "ties"])
def test_one_adapter_merged_answers_as_itself(tiny, adapters, batch, name, rule):  # noqa: F811
    from vlmpeft.adapters import load_adapter

    model, _, components = tiny
    attached = load_adapter(adapters[name], model, components)
    ours = logits(model, batch)
    attached.detach()
    merged = Merged((adapters[name],), rule, density=1.0 if rule == "ties" else None)
    attached = attach(Plan(projector=merged, language=merged), model, components)
    torch.testing.assert_close(logits(model, batch), ours, rtol=1e-4, atol=1e-3)
    before = load_base(BASE)[0].state_dict()
    attached.detach()
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


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
    parts = [read_operand(folder, model, components, ("language",)).deltas for folder in three]
    name = "model.language_model.layers.1.self_attn.v_proj.weight"
    by_hand = sum(w * dense(part[name]) for w, part in zip((0.5, 0.3, 0.2), parts, strict=True))
    torch.testing.assert_close(found[name], by_hand)
    assert (ours - plain).abs().max() > 1e-2


def test_a_merge_stands_beside_quantized_weights(tiny_nf4, adapters, batch):  # noqa: F811
    from vlmpeft.adapters import load_adapter

    model, _, components = tiny_nf4
    attached = load_adapter(adapters["lora"], model, components)
    ours = logits(model, batch)
    attached.detach()
    merged = Merged((adapters["lora"],), "average")
    attached = attach(Plan(projector=merged, language=merged), model, components)
    torch.testing.assert_close(logits(model, batch), ours, rtol=1e-3, atol=5e-3)


def test_what_has_no_dw_is_refused_by_name(tiny, adapters):
    model, _, components = tiny
    merged = Merged((adapters["lora"], adapters["bottleneck"]))
    with pytest.raises(UserError, match="BottleneckAdapter on language is no change of weights"):
        attach(Plan(language=merged), model, components)
    assert not any("lora" in n or "bottleneck" in n for n, _ in model.named_parameters())


def test_a_merge_is_scored_from_a_config_as_the_adapter_itself_is(adapters, tmp_path, capsys):
    """`test` without --adapter scores what the plan is before training: the base, and a merge on it."""
    bits = "--model.base.bits.language=fp32"
    merged = f"{{class_path: Merged, init_args: {{adapters: [{adapters['lora']}], rule: average}}}}"
    plan = [f"--model.plan.{name}={merged}" for name in ("projector", "language")]
    losses = []
    for args in (["--adapter", adapters["lora"]], plan, ["--model.plan.language=LoRA"]):
        capsys.readouterr()
        assert call("test", "--config=lora_r16.yaml", bits, *args) == 0
        losses.append(json.loads(capsys.readouterr().out.splitlines()[-1])["test/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] != pytest.approx(losses[0], rel=1e-2)
