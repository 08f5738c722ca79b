"""Estimated bytes are the papers' arithmetic on LLaVA-1.5-7B, and what is counted on the embedded base."""

import json
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlmpeft.base.components import find_components
from vlmpeft.base.loading import load_base, meta_model, recompute_activations
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.preflight.forecast import (
    CHECKPOINTED,
    PLAIN,
    Load,
    blank_of,
    forecast,
    most_rank,
    with_rank,
)
from vlmpeft.preflight.static_memory import (
    attached_widths,
    convention_bytes,
    largest,
    shortcut_bytes,
    static_bytes,
    tensor_bytes,
    weight_widths,
)
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import DoRA, Frozen, Full, LoRA
from vlmpeft.strategies.plan import Plan, attach
from vlmpeft.training.module import VLMModule

from ..conftest import ROOT, call
from ..families import save_qwen
from ..strategies.test_plan import llava_7b_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERYTHING_NF4 = Bits("nf4", "nf4", "nf4")
CASES = {
    "lora": (Bits(language="fp32"), Plan(language=LoRA())),
    "lora on nf4": (Bits(), Plan(language=LoRA(targets=ATTENTION))),
    "full": (Bits(language="fp32"), Plan(Full(), Full(), Full())),
    "dora, full projector": (Bits(language="fp32"), Plan(projector=Full(), language=DoRA())),
    "tower too": (EVERYTHING_NF4, Plan(LoRA(), LoRA(), LoRA())),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LLaVA-1.5-7B as a folder that holds nothing but a config.json."""
    folder = tmp_path_factory.mktemp("llava-7b")
    (folder / "config.json").write_text(json.dumps(llava_7b_config().to_dict()))
    return str(folder)


@cache
def _load():
    return Load(blank_of(BaseSpec(), 401_408), batch=4, tokens=96, answer_tokens=24)


@pytest.fixture
def load():
    return _load()


@cache
def _on_meta(path):
    model = meta_model(BaseSpec(path=path))
    return model, find_components(model)


@cache
def _forecast(name, kinds):
    bits, plan = CASES[name]
    return forecast(BaseSpec(bits=bits), plan, _load(), CPU, kinds)


def _static(path, bits, plan=None, device=GPU, double_quant=True):
    spec = BaseSpec(path=path, bits=bits, double_quant=double_quant)
    model, components = _on_meta(path)
    widths = weight_widths(model, components, spec, device)
    attached = attach(plan or Plan(), model, components)
    found = static_bytes(attached, widths, double_quant)
    attached.detach()
    return found


# -- the papers' arithmetic ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "double_quant", "gigabytes"),
    [
        (Bits("bf16", "bf16", "bf16"), True, 14.127),
        (EVERYTHING_NF4, False, 4.353),
        (EVERYTHING_NF4, True, 4.036),
        (Bits("bf16", "bf16", "nf4"), False, 4.818),
        (Bits("auto", "auto", "nf4"), True, 4.516),
    ],
)
def test_weights_of_llava_7b_have_the_known_size(folder, bits, double_quant, gigabytes):
    found = _static(folder, bits, double_quant=double_quant)
    assert found.total == found.weight_total
    assert found.total / 1e9 == pytest.approx(gigabytes, abs=0.0015)


@pytest.mark.parametrize(
    ("plan", "gigabytes"),
    [
        (Plan(Full(), Full(), Full()), 113.01),
        (Plan(Frozen(), Full(), Full()), 108.77),
        (Plan(projector=Full()), 14.42),
    ],
)
def test_full_fine_tuning_of_llava_7b_takes_16_bytes_a_trained_parameter(folder, plan, gigabytes):
    found = _static(folder, Bits("bf16", "bf16", "bf16"), plan)
    assert found.total / 1e9 == pytest.approx(gigabytes, abs=0.006)


def test_conventions_of_the_papers():
    assert convention_bytes(7_000_000_000) == 112_000_000_000
    assert convention_bytes(7_063_427_072) / 2**30 == pytest.approx(105.25, abs=0.005)
    assert convention_bytes(6_759_919_616, 303_507_456) / 1e9 == pytest.approx(108.77, abs=0.005)
    assert shortcut_bytes(7_000_000_000, 16_777_216) == 3_500_000_000 + 33_554_432


def test_a_lora_has_three_fp32_copies_of_each_kind(folder):
    """Decision 4: trainables are fp32, so that there are no master weights beside them."""
    plan = Plan(language=LoRA(targets=("*.language_model.layers.0.self_attn.q_proj",)))
    found = _static(folder, Bits(), plan)
    assert found.adapters == found.gradients == 4 * 4096**2 // 128
    assert found.optimizer == 8 * 4096**2 // 128 + 4 * 2


@pytest.mark.parametrize(("width", "bits"), [("nf4", 4.127), ("fp4", 4.127), ("bf16", 16)])
def test_bits_a_weight(width, bits):
    n = 4096 * 11008
    assert 8 * tensor_bytes((4096, 11008), width) / n == pytest.approx(bits, abs=0.001)


def test_without_double_quantization_a_weight_takes_four_and_a_half_bits():
    assert 8 * tensor_bytes((4096, 4096), "nf4", double_quant=False) / 4096**2 == pytest.approx(
        4.5, abs=0.001
    )


# -- what is counted -------------------------------------------------------------------------------


def _tensors(model, optimizer):
    for parameter in model.parameters():
        yield from (t for t in (parameter, parameter.grad) if t is not None)
        if state := getattr(parameter, "quant_state", None):
            yield from (state.absmax, state.code)
            if state.nested:
                yield from (state.offset, state.state2.absmax, state.state2.code)
        if isinstance(scale := getattr(parameter, "SCB", None), torch.Tensor):
            yield scale
    for state in optimizer.state.values():
        yield from state.values()


def _bytes_of(storages):
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def _real_step(bits, plan, load, checkpointing=False):
    """(bytes held after a step of AdamW, bytes saved by its forward, FLOPs of both passes)."""
    module = VLMModule(BaseSpec(bits=bits), plan)
    module.load(CPU)
    model = module.model
    module.attached = attach(plan, model, module.components)
    module._set_modes()
    if checkpointing:
        recompute_activations(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = []
    batch = load.blank.batch(load.batch, load.tokens, load.answer_tokens)
    optimizer = torch.optim.AdamW(module.attached.parameter_groups())

    def pack(tensor):
        saved.append(tensor.untyped_storage())
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = supervised_loss(model, batch)
        loss.backward()
    optimizer.step()
    held = _bytes_of(t.untyped_storage() for t in _tensors(model, optimizer))
    kept = _bytes_of(s for s in saved if s.data_ptr() not in weights)
    return held, kept, counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("lora", (PLAIN,)),
        ("lora on nf4", (PLAIN, CHECKPOINTED)),
        ("full", (PLAIN, CHECKPOINTED)),
        ("dora, full projector", (PLAIN,)),
        ("tower too", (CHECKPOINTED,)),
    ],
)
def test_bytes_of_the_embedded_base_are_those_of_a_real_step(load, name, kinds):
    found = _forecast(name, kinds)
    for kind in kinds:
        held, saved, _ = _real_step(*CASES[name], load, kind == CHECKPOINTED)
        step = found.steps[kind]
        assert found.static.total == pytest.approx(held, rel=0.05)
        assert step.saved_bytes + step.logits_bytes == pytest.approx(saved, rel=0.10)
        assert step.peak_bytes > step.saved_bytes + step.logits_bytes


def test_checkpointing_saves_bytes_and_costs_flops():
    steps = _forecast("lora on nf4", (PLAIN, CHECKPOINTED)).steps
    plain, less = steps[PLAIN], steps[CHECKPOINTED]
    assert less.saved_bytes < plain.saved_bytes / 4
    assert less.backward_flops > plain.backward_flops


@pytest.mark.parametrize(
    ("width", "double_quant"), [("nf4", True), ("nf4", False), ("fp4", True), ("int8", True)]
)
def test_quantized_weights_have_bitsandbytes_own_size(width, double_quant):
    spec = BaseSpec(bits=Bits(vision=width, language=width), double_quant=double_quant)
    model, _, _ = load_base(spec)
    real = _bytes_of(
        t.untyped_storage() for t in _tensors(model, torch.optim.AdamW(model.parameters()))
    )
    assert _static("tiny", spec.bits, device=CPU, double_quant=double_quant).total == real


def test_components_may_have_different_quantized_widths():
    spec = BaseSpec(bits=Bits(vision="int8", projector="fp32", language="nf4"))
    real = {
        name: (p.dtype == torch.int8, p.dtype == torch.uint8)
        for name, p in load_base(spec)[0].named_parameters()
    }
    model = meta_model(spec)
    widths = weight_widths(model, find_components(model), spec, CPU)
    found = {
        name: (widths[p] == "int8", widths[p] == "nf4") for name, p in model.named_parameters()
    }
    assert found == real
    assert {*real.values()} == {(True, False), (False, True), (False, False)}


def test_flops_are_those_that_torch_counts(load):
    """Without attention, which torch's counter has no formula for on a CPU."""
    step = _forecast("lora", (PLAIN,)).steps[PLAIN]
    _, _, counted = _real_step(*CASES["lora"], load)
    batch, tokens, width, layers = 4, 96, 128, 4
    product = 2 * batch * tokens**2 * width  # of q with k, and of their weights with v
    tower = 2 * 2 * batch * 17**2 * 96 * 3
    attention = layers * (2 + 5) * product + tower  # two forward, five backward
    total = sum(step.forward_flops.values()) + step.backward_flops
    assert total - attention == pytest.approx(counted, rel=0.001)
    assert {*step.forward_flops} == {"vision", "projector", "language"}


def test_forward_of_the_language_model_costs_two_flops_a_weight_and_token():
    weights = 4 * (4 * 128 * 128 + 3 * 128 * 352)
    found = _forecast("lora", (PLAIN,)).steps[PLAIN].forward_flops["language"]
    assert 2 * weights * 4 * 96 < found < 2 * 1.5 * weights * 4 * 96


def test_a_frozen_tower_keeps_nothing(load):
    tower_too = Plan(vision=LoRA(), language=LoRA())
    more = forecast(BaseSpec(bits=Bits(language="fp32")), tower_too, load, CPU, (PLAIN,))
    saved = _forecast("lora", (PLAIN,)).steps[PLAIN].saved_bytes
    assert more.steps[PLAIN].saved_bytes > 1.05 * saved


def test_a_plan_that_trains_nothing_has_no_step(load):
    found = forecast(BaseSpec(), Plan(), load, CPU, (PLAIN,))
    assert (found.steps, found.static.gradients) == ({}, 0)
    assert "grad" in found.unknown


def test_a_qwen_s_picture_follows_from_the_pixel_budget(tmp_path):
    """28 x 28 pixels a token (Qwen2.5-VL, section 2.1), with and without its processor."""
    spec = BaseSpec(path=str(save_qwen(tmp_path)), bits=Bits(language="fp32"))
    plan = Plan(vision=LoRA(r=2), projector=Full(), language=LoRA(r=2))
    saved = []
    for _ in range(2):
        blank = blank_of(spec, 4 * 28 * 4 * 28)
        assert blank.image_tokens == 16
        load = Load(blank, 2, 160, 8)
        saved.append(forecast(spec, plan, load, CPU, (PLAIN,)).steps[PLAIN].saved_bytes)
        for path in tmp_path.iterdir():
            if path.name != "config.json":
                path.unlink()
    assert saved[0] == pytest.approx(saved[1], rel=0.01)


# -- what fits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 106, 107, 1000, 12345])
def test_largest_is_the_last_that_fits(limit):
    def size(n):
        return 100 + 7 * n + n * n // 100

    n = largest(size, limit)
    assert n == 0 or size(n) <= limit
    assert size(n + 1) > limit
    assert largest(size, 10**9, start=8, most=16) == 16


def test_the_largest_rank_is_no_larger_than_the_layers():
    spec, plan = BaseSpec(bits=Bits(language="fp32")), CASES["lora"][1]
    most = most_rank(spec, plan)
    assert most == 128
    with pytest.raises(UserError, match="more than"):
        _static("tiny", spec.bits, with_rank(plan, most + 1))
    eighth, whole = (_static("tiny", spec.bits, with_rank(plan, r)) for r in (most // 8, most))
    assert whole.adapters == 8 * eighth.adapters


# -- the verb --------------------------------------------------------------------------------------


def _estimate(capfd, *args):
    code = call("estimate", *args)
    out, err = capfd.readouterr()
    return code, out, err


def _write(folder, config, layers=1, vision_layers=1):
    config["text_config"]["num_hidden_layers"] = layers
    config["vision_config"]["num_hidden_layers"] = vision_layers
    (folder / "config.json").write_text(json.dumps(config))
    return f"--model.base.path={folder}"


def test_the_verb_prints_json_and_nothing_else(capfd, tmp_path):
    """On the embedded base with one layer, and without its processor."""
    base = _write(tmp_path, json.loads((ROOT / "vlmpeft/base/tiny/config.json").read_text()))
    args = ("--config", "lora_r16.yaml", base, "--batch", 4, "--tokens", 64, "--gb", 0.05)
    code, out, _ = _estimate(capfd, *args, "--json")
    report = json.loads(out)
    assert (code, report["batch"], report["tokens"], report["image_tokens"]) == (0, 4, 64, 16)
    rows = report["rows"]
    assert {*rows} == {"plan", "full", "qlora"}
    total = sum(report["parameters"].values())
    assert rows["full"]["static_bytes"] == pytest.approx(16 * total, rel=0.001)
    assert rows["plan"]["trainable"] == 28_928 + 4 * 16 * 256  # projector, and r (d_in + d_out)
    fits = report["largest"]["batch"]["plan"]
    spec, plan = (
        BaseSpec(path=str(tmp_path)),
        Plan(projector=Full(), language=LoRA(targets=ATTENTION)),
    )
    blank = blank_of(spec, 401_408)
    smaller, larger = (
        forecast(spec, plan, Load(blank, n, 64, report["answer_tokens"]), CPU, (PLAIN,))
        for n in (fits, fits + 1)
    )
    assert smaller.peak(PLAIN) <= 0.05e9 < larger.peak(PLAIN)


def test_the_verb_needs_a_config_alone(capfd, tmp_path):
    """LLaVA-1.5-7B's widths with few layers; the sizes of all of them are tested above."""
    base = _write(tmp_path, llava_7b_config().to_dict(), vision_layers=2)
    args = ("--config", "llava_7b_qlora.yaml", base, "--device", "cuda", "--tokens", 640)
    code, out, _ = _estimate(capfd, *args, "--batch", 1)
    assert code == 0
    for text in (
        "bf16 autocast on a GPU",
        "576 of them",
        "16 bytes a parameter",
        "shortcut",
        "TFLOP",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gb", "0"], "--gb 0: give a number above 0"),
        (["--batch", "-2"], "--batch -2"),
        (["--tokens", "12"], "--tokens: 12 tokens are too few, the picture alone takes 16"),
        (["--data.max_length", "12"], "data.max_length: 12 tokens are too few"),
        (["--tokens", "64", "--answer_tokens", "60"], "--answer_tokens 60: --tokens 64 leaves"),
        (["--optimizer", "adafactor"], "adafactor"),
        (["--model.base.bits.projector=nf4"], "model.plan.projector trains"),
    ],
)
def test_a_mistake_is_one_line_with_the_next_move(capfd, args, message):
    code, _, err = _estimate(capfd, "--config", "lora_r16.yaml", *args)
    assert code == 2
    assert message in err.strip().splitlines()[-1]


def test_trained_quantized_weights_are_refused():
    spec = BaseSpec(bits=EVERYTHING_NF4)
    model = meta_model(spec)
    components = find_components(model)
    widths = weight_widths(model, components, spec, CPU)
    with pytest.raises(UserError, match=r"bits\.projector to bf16 or fp32"):
        attached_widths(attach(Plan(projector=Full()), model, components), widths)
