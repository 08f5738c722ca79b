"""The integers of LLaVA-1.5-7B are the published ones (DoRA, PEFT-MLLM, VeRA) or follow from its config."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
)

from vlmpeft.base.components import find_components
from vlmpeft.base.loading import meta_model
from vlmpeft.base.spec import BaseSpec
from vlmpeft.preflight.leaks import leak_notes
from vlmpeft.preflight.plan_table import plan_table
from vlmpeft.preflight.reachability import find_unreachable
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import (
    IA3,
    BottleneckAdapter,
    DoRA,
    Full,
    LastLayers,
    LoRA,
    PrefixTuning,
    PromptTuning,
)
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import call, randomize

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def llava_7b_config():
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008)
    return LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def llava_7b():
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(llava_7b_config())
    return model, find_components(model)


def _count(llava, **plan):
    attached = attach(Plan(**plan), *llava)
    summary = attached.summary()
    attached.detach()
    return summary


@pytest.mark.parametrize(
    ("targets", "r", "trainable", "percent"),
    [
        (("q_proj", "v_proj"), 4, 2_097_152, 0.0297),
        (("q_proj", "v_proj"), 16, 8_388_608, 0.1186),
        (("q_proj", "v_proj"), 64, 33_554_432, 0.4728),
        (ATTENTION, 4, 4_194_304, 0.0593),
        (ATTENTION, 16, 16_777_216, 0.2370),
        (ATTENTION, 64, 67_108_864, 0.9411),
        (None, 4, 9_994_240, 0.1413),
        (None, 16, 39_976_960, 0.5628),
        pytest.param(None, 64, 159_907_840, 2.2138, marks=pytest.mark.slow),
        pytest.param(None, 128, 319_815_680, 4.3316, marks=pytest.mark.slow),
    ],
)
def test_language_lora_has_the_published_count_and_does_not_leak(
    llava_7b, targets, r, trainable, percent
):
    summary = _count(llava_7b, language=LoRA(r=r, targets=targets))
    assert summary["total"] == 7_063_427_072
    assert summary["trainable"] == summary["added"] == trainable
    assert summary["percent"] == pytest.approx(percent, abs=0.0001)
    assert summary["components"]["vision"]["trainable"] == 0


@pytest.mark.parametrize(
    ("targets", "counts"),
    [
        (("q_proj", "v_proj"), (393_216, 1_572_864, 6_291_456)),
        (("q_proj", "k_proj", "v_proj"), (589_824, 2_359_296, 9_437_184)),
        (("q_proj", "k_proj", "v_proj", "out_proj"), (786_432, 3_145_728, 12_582_912)),
        (None, (1_769_472, 7_077_888, 28_311_552)),
    ],
    ids=["q,v", "q,k,v", "q,k,v,out", "six"],
)
def test_vision_lora_has_the_published_count(llava_7b, targets, counts):
    """On q,v and q,k,v it is also what bare suffixes (q,v; q,k,v,o) would leak into CLIP."""
    for r, trainable in zip((4, 16, 64), counts, strict=True):
        summary = _count(llava_7b, vision=LoRA(r=r, targets=targets))
        assert summary["trainable"] == summary["components"]["vision"]["trainable"] == trainable


def test_projector_counts(llava_7b):
    for r, trainable in ((4, 53_248), (16, 212_992), (64, 851_968)):
        assert _count(llava_7b, projector=LoRA(r=r))["trainable"] == trainable
    full = _count(llava_7b, projector=Full())
    assert (full["trainable"], full["added"]) == (20_979_712, 0)


SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("strategy", "trainable", "percent"),
    [
        (DoRA(r=16, targets=("q_proj", "v_proj")), 8_650_752, 0.1223),
        (DoRA(r=16, targets=ATTENTION), 17_301_504, 0.2443),
        (DoRA(r=16, targets=SEVEN), 41_336_832, 0.5818),
        pytest.param(DoRA(r=128), 321_175_552, 4.3493, marks=pytest.mark.slow),
        (IA3(), 614_400, 0.0087),
        (BottleneckAdapter(), 67_248_128, 0.9431),
        (BottleneckAdapter(style="houlsby"), 134_496_256, 1.8685),
        (PromptTuning(n=20), 81_920, 0.00116),
        (PrefixTuning(n=20), 5_242_880, 0.0742),
    ],
    ids=[
        "dora q,v",
        "dora attention",
        "dora 7",
        "dora r=128",
        "ia3",
        "pfeiffer",
        "houlsby",
        "prompt",
        "prefix",
    ],
)
def test_language_methods_have_the_published_counts(llava_7b, strategy, trainable, percent):
    """DoRA: LoRA and the sum of d_out; IA3 on k, v, down: L (2 d_kv + d_ff); adapters: L (2 d b + b + d)."""
    summary = _count(llava_7b, language=strategy)
    assert summary["trainable"] == summary["added"] == trainable
    assert summary["percent"] == pytest.approx(percent, abs=0.0001)


@pytest.mark.parametrize(("style", "trainable"), [("pfeiffer", 3_171_840), ("houlsby", 6_343_680)])
def test_adapters_inside_clip_have_the_published_counts(llava_7b, style, trainable):
    assert _count(llava_7b, vision=BottleneckAdapter(style=style))["trainable"] == trainable


def test_dora_paper_percentage_of_dora_with_full_projector(llava_7b):
    """DoRA (Liu et al. 2024), LLaVA-1.5-7B: 4.63 %."""
    summary = _count(llava_7b, language=DoRA(r=128), projector=Full())
    assert summary["percent"] == pytest.approx(4.634, abs=0.001)


def test_dora_paper_percentage_of_lora_with_full_projector(llava_7b):
    """DoRA (Liu et al. 2024), LLaVA-1.5-7B: LoRA r=128 on 7 linears and the projector is 4.61 %."""
    assert _count(llava_7b, language=LoRA(r=128), projector=Full())["percent"] == pytest.approx(
        4.616, abs=0.001
    )


@pytest.mark.parametrize(
    ("targets", "note"),
    [
        (("q_proj", "v_proj"), "q_proj and v_proj also exist in vision: 48 modules left alone"),
        (("v_proj",), "v_proj also exists in vision: 24 modules left alone"),
        (ATTENTION, "q_proj, k_proj and v_proj also exist in vision: 72 modules left alone"),
        (("up_proj",), None),
    ],
)
def test_a_suffix_that_would_have_leaked_is_noted(llava_7b, targets, note):
    attached = attach(Plan(language=LoRA(targets=targets)), *llava_7b)
    assert leak_notes(attached) == leak_notes(attached, explicit_only=True) == ([note] * bool(note))
    caption = plan_table(attached).caption
    attached.detach()
    assert caption == (note or "")


def test_layers_that_were_chosen_too_are_not_left_alone(llava_7b):
    plan = Plan(vision=LoRA(targets=("q_proj",)), language=LoRA())
    attached = attach(plan, *llava_7b)
    both, explicit = leak_notes(attached), leak_notes(attached, explicit_only=True)
    attached.detach()
    assert both == ["k_proj and v_proj also exist in vision: 48 modules left alone"]
    assert explicit == []


def test_the_last_tower_layer_of_llava_is_unreachable(llava_7b):
    """`vision_feature_layer=-2`: 1/24 of a vision LoRA never gets a gradient."""
    attached = attach(Plan(vision=LoRA(), projector=Full(), language=LoRA()), *llava_7b)
    reach = find_unreachable(attached)
    counts = [reach.count(attached, name) for name in ("vision", "projector", "language")]
    attached.detach()
    assert counts == [7_077_888 * 23 // 24, 20_979_712, 39_976_960]
    assert all(".encoder.layers.23." in name for name in reach.unreachable)


def test_a_plan_that_trains_only_the_dead_layer_reaches_nothing(llava_7b):
    attached = attach(Plan(vision=LastLayers()), *llava_7b)
    count = find_unreachable(attached).count(attached, "vision")
    trainable = len(attached.trainable())
    attached.detach()
    assert (count, trainable > 0) == (0, True)


SHALLOW = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 2}}


@pytest.mark.parametrize(
    ("model_type", "config", "layer"),
    [
        ("llava_next", {}, ".encoder.layers.23."),
        ("qwen2_vl", SHALLOW, None),
        ("qwen2_5_vl", SHALLOW, None),
    ],
)
def test_a_twin_tells_what_is_reachable(model_type, config, layer):
    unreachable = _reach(model_type, **config).unreachable
    assert bool(unreachable) == bool(layer)
    assert all(layer in name for name in unreachable)


def test_where_no_twin_runs_reachable_is_not_known():
    reach = _reach("kosmos-2")
    assert reach.unreachable is None
    assert reach.reason


def _reach(model_type, **config):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **config))
    plan = Plan(vision=LoRA(), projector=Full(), language=LoRA(targets=("q_proj",)))
    return find_unreachable(attach(plan, model, find_components(model)))


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # Lightning's of jsonargparse, once a process
def test_plan_json_has_notes_and_reachable(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(llava_7b_config().to_dict()))
    lora = '[{"class_path": "LoRA", "init_args": {"targets": ["q_proj"]}}]'
    arguments = [f"--model.base.path={tmp_path}", f"--model.plan.vision={lora}"]
    assert call("plan", "--json", "--data.train=x.json", *arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["notes"] == ["q_proj also exists in language: 32 modules left alone"]
    vision = plan["components"]["vision"]
    assert (vision["trainable"], vision["reachable"]) == (786_432, 786_432 * 23 // 24)
    assert plan["components"]["language"]["reachable"] == 0


def test_component_sizes_follow_from_the_config(llava_7b):
    components = _count(llava_7b)["components"]
    assert [components[name]["parameters"] for name in ("vision", "projector", "language")] == [
        303_507_456,
        20_979_712,
        6_738_939_904,
    ]


def test_a_folder_with_only_a_config_is_enough(tmp_path, llava_7b):
    (tmp_path / "config.json").write_text(json.dumps(llava_7b_config().to_dict()))
    model = meta_model(BaseSpec(path=str(tmp_path)))
    assert sum(p.numel() for p in model.parameters()) == 7_063_427_072


def test_wrong_target_says_what_exists(tiny):
    with pytest.raises(
        UserError, match=r"'qproj'.*language; it has q_proj, k_proj.*Did you mean q_proj"
    ):
        attach(Plan(language=LoRA(targets=("qproj",))), tiny[0], tiny[2])


def test_target_of_another_component_is_refused(tiny):
    with pytest.raises(UserError, match=r"'fc1'.*\(fc1 is in vision\)"):
        attach(Plan(language=LoRA(targets=("fc1",))), tiny[0], tiny[2])


def test_a_failed_attach_leaves_the_model_as_it_was(tiny):
    model, _, components = tiny
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(UserError):
        attach(Plan(vision=LoRA(), language=LoRA(targets=("nope",))), model, components)
    assert [name for name, _ in model.named_modules()] == before


def test_exactly_the_planned_parameters_take_gradients(tiny_nf4):
    model, _, components = tiny_nf4
    attached = attach(
        Plan(vision=LoRA(r=2), projector=Full(), language=LoRA(r=4)), model, components
    )
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert training == set(attached.trainable())
    assert {parameter.dtype for parameter in attached.trainable().values()} == {torch.float32}


def test_detach_restores_the_model(tiny):
    model, _, components = tiny
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attached = attach(Plan(vision=LoRA(), projector=Full(), language=LoRA()), model, components)
    randomize(attached)
    assert set(before) != set(model.state_dict())
    attached.detach()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_full_on_a_quantized_component_is_refused(tiny_nf4):
    with pytest.raises(UserError, match="quantized"):
        attach(Plan(language=Full()), tiny_nf4[0], tiny_nf4[2])


def test_plan_survives_json():
    plan = Plan(vision=LoRA(r=2, targets=("q_proj",)), projector=Full(1e-3), language=[LoRA()])
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.to_dict() == plan.to_dict()
    assert again.of("vision") == plan.of("vision")


def test_learning_rate_is_per_component(tiny):
    plan = Plan(projector=Full(learning_rate=1e-4), language=LoRA(learning_rate=3e-3))
    groups = attach(plan, tiny[0], tiny[2]).parameter_groups()
    assert {group["name"]: group["lr"] for group in groups} == {"projector": 1e-4, "language": 3e-3}


def test_rank_below_one_is_refused():
    with pytest.raises(UserError, match="rank"):
        LoRA(r=0)
