"""The gradient self-test names what would not train, notices what should not, and leaves no trace."""

import json

import pytest
import torch
from torch import nn

from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.runtime.records import read_record
from vlmpeft.strategies import AdaLoRA, Full, LastLayers, LoRA
from vlmpeft.strategies.plan import Plan, attach
from vlmpeft.training.gradient_check import gradient_self_test
from vlmpeft.training.module import VLMModule

from ..conftest import call, llava, write_json
from ..data.test_encode import Image, talk


@pytest.fixture
def batch(tiny, pictures):
    image = Image(str(pictures / "a.png"))
    return collate([Encoder(tiny[1]).encode(talk((image, "what part?"), "gear"))], 0)


def attached_to(loaded, **plan):
    model, _, components = loaded
    return attach(Plan(**plan), model, components)


@pytest.mark.parametrize("base", ["tiny", "tiny_nf4"])
def test_the_recipe_passes_and_every_bit_is_as_before(request, base, batch):
    attached = attached_to(request.getfixturevalue(base), projector=Full(), language=LoRA())
    before = {n: p.detach().clone() for n, p in attached.model.named_parameters()}
    result = gradient_self_test(attached, batch)
    assert result.problems == result.unreachable == ()
    after = dict(attached.model.named_parameters())
    assert all(torch.equal(p, after[n]) for n, p in before.items())
    assert all(p.grad is None for p in after.values())
    assert any(not p.any() for p in before.values())  # B of the LoRA was zero, and is


def test_what_the_loss_does_not_depend_on_is_unreachable_and_no_problem(tiny, batch):
    """LLaVA takes the patches of a tower's layer, never its final normalisation."""
    result = gradient_self_test(attached_to(tiny, vision=Full()), batch)
    assert result.problems == ()
    assert {name.split(".")[-2] for name in result.unreachable} == {"post_layernorm"}


class _Cut(nn.Module):
    """Lets nothing back through."""

    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, *args, **kwargs):
        output = self.inner(*args, **kwargs)
        return self.how(output)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda x: x + 0 * x.sum(), None),
        (lambda x: 0 * x, "gradient of zeros"),
        (lambda x: x * float("inf"), "not finite"),
    ],
    ids=["fine", "zeros", "infinite"],
)
def test_broken_gradients_are_named(tiny, batch, how, reason):
    attached = attached_to(tiny, projector=Full())
    projector = attached.model.model.multi_modal_projector
    projector.register_forward_hook(lambda _module, _args, output: how(output))
    problems = gradient_self_test(attached, batch).problems
    assert bool(problems) == (reason is not None)
    assert all(reason in problem and "multi_modal_projector" in problem for problem in problems)


def test_a_frozen_tensor_with_a_gradient_is_named(tiny, batch):
    attached = attached_to(tiny, projector=Full())
    attached.model.lm_head.weight.requires_grad_(True)
    (problem,) = gradient_self_test(attached, batch).problems
    assert problem.endswith("is frozen and gets a gradient")


def test_gradients_that_change_after_an_evaluation_are_noticed(tiny, batch):
    """As bitsandbytes 0.50 does on AVX512-BF16 CPUs: the first no-grad forward changes what backward sees."""
    attached = attached_to(tiny, projector=Full())
    state = {"scale": 1.0}

    def spoil(_module, _args, output):
        if not torch.is_grad_enabled():
            state["scale"] = 0.5
        return output.detach() + state["scale"] * (output - output.detach())

    attached.model.model.multi_modal_projector.register_forward_hook(spoil)
    problems = gradient_self_test(attached, batch).problems
    assert problems
    assert all("another gradient after an evaluation" in problem for problem in problems)


def fit(tmp_path, pictures, *extra):
    records = [llava(f"q{n}", f"a{n % 2}", "abc"[n % 3] + ".png") for n in range(12)]
    data = write_json(tmp_path / "d.json", records)
    return call(
        "fit",
        f"--data.train={data}",
        f"--data.val={data}",
        f"--data.image_dir={pictures}",
        f"--runs_dir={tmp_path}",
        "--run_name=r",
        "--data.batch_size=4",
        "--model.base.bits.language=fp32",
        *extra,
    )


def test_a_run_leaves_unreachable_tensors_as_they_are_and_counts_the_others(
    tmp_path, pictures, capsys
):
    plan = ["--model.plan.vision=Full"]
    assert fit(tmp_path, pictures, *plan, "--trainer.max_epochs=1") == 0
    record = read_record(tmp_path / "r")
    assert 0 < record["reachable"] < record["trainable"]
    assert "do not reach the loss" in capsys.readouterr().out


def test_adalora_really_allocates_its_budget(tmp_path, pictures):
    """Rank 4 at the start, 2 on average at the end: half of the singular values are exactly zero."""
    from safetensors.torch import load_file

    plan = ["--model.plan.language=AdaLoRA", "--model.plan.language.init_args.init_r=4"]
    plan += ["--model.plan.language.init_args.target_r=2", "--trainer.max_epochs=8"]
    plan += [
        "--model.plan.language.init_args.warmup=0.1",
        "--model.plan.language.init_args.final=0.3",
    ]
    assert fit(tmp_path, pictures, *plan) == 0
    tensors = load_file(tmp_path / "r" / "adapter" / "adapter.safetensors")
    values = torch.cat([t.flatten() for name, t in tensors.items() if ".lora_E." in name])
    assert (values == 0).sum().item() == len(values) // 2
    manifest = json.loads((tmp_path / "r" / "adapter" / "manifest.json").read_text())
    assert manifest["plan"]["language"][0]["class_path"] == "AdaLoRA"


def test_adalora_keeps_its_budget_while_it_warms_up_and_from_the_final_steps_on(tiny, batch):
    """Of 20 steps 10 are warm-up and the last 2 final; 16 singular values at the start and 8 at the end.

    Between them what is still to go falls with the cube of the share of steps that are left: 8 x (6 / 8)^3 = 3.4, 8 x (4 / 8)^3 = 1.
    """
    attached = attached_to(
        tiny, language=AdaLoRA(init_r=4, target_r=2, warmup=0.5, final=0.1, targets=("q_proj",))
    )
    (attachment,) = [a for a in attached.attachments if a.hooks.penalty]
    attachment.hooks.schedule(20)
    singular = [p for n, p in attached.trainable().items() if ".lora_E." in n]
    total, kept = sum(p.numel() for p in singular), {}
    for step in range(1, 21):
        with torch.no_grad():
            for parameter in attached.trainable().values():
                parameter.copy_(torch.rand_like(parameter) + 0.1)
                parameter.grad = torch.rand_like(parameter)
        attachment.hooks.after_step(step)
        kept[step] = sum(int((p != 0).sum()) for p in singular)
    assert total == 16
    assert all(kept[step] == 16 for step in range(1, 11))
    assert (kept[12], kept[14]) == (8 + 3, 8 + 1)
    assert all(kept[step] == 8 for step in range(18, 21))


def test_orthogonality_is_part_of_adalora_s_loss(tiny, batch):
    attached = attached_to(tiny, language=AdaLoRA(init_r=4, target_r=2))
    (attachment,) = [a for a in attached.attachments if a.hooks.penalty]
    first = attachment.hooks.penalty()
    optimizer = torch.optim.SGD(
        [p for n, p in attached.trainable().items() if ".lora_E." not in n], lr=20
    )
    for _ in range(200):
        optimizer.zero_grad()
        attachment.hooks.penalty().backward()
        optimizer.step()
    assert 0 <= attachment.hooks.penalty() < 0.2 * first


def test_a_plan_of_which_nothing_is_reached_is_a_problem_not_a_traceback(tiny, batch):
    """LLaVA-1.5 taps the layer before the last of its tower."""
    model, _, components = tiny
    model.config.vision_feature_layer = -2
    attached = attach(Plan(vision=LastLayers(n=1)), model, components)
    found = gradient_self_test(attached, batch)
    assert found.problems == (
        "no trainable tensor gets a gradient: the loss depends on none of them",
    )
    assert set(found.unreachable) == set(attached.trainable())


def test_a_module_that_is_used_too_early_says_which_method_comes_first():
    module = VLMModule()
    for part, method in (("attached", "configure_model"), ("scorer", "set_scorer")):
        with pytest.raises(RuntimeError, match=f"call {method} first"):
            getattr(module, part)
