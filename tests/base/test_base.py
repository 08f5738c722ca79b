"""What each component's weights really are, and that a quantized base trains right."""

import shutil

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from vlmpeft.base.components import count_by_component
from vlmpeft.base.fingerprint import fingerprint
from vlmpeft.base.loading import actual_bits, load_base
from vlmpeft.base.quantization import requantized
from vlmpeft.base.spec import BaseSpec, Bits, base_dir, resolve_bits
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import Full, LoRA
from vlmpeft.strategies.deltas import dequantized
from vlmpeft.strategies.plan import Plan, attach
from vlmpeft.training.gradient_check import gradient_self_test

from ..conftest import randomize
from ..data.test_encode import Image, talk


def _quantized(model):
    return {name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}


def test_default_quantizes_the_language_linears_but_not_the_head(tiny_nf4):
    model, _, components = tiny_nf4
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    language = {n for n in linears if components.component_of(n) == "language"} - {"lm_head"}
    assert _quantized(model) == language != set()
    assert actual_bits(model, components) == {
        "vision": "fp32",
        "projector": "fp32",
        "language": "nf4 + fp32",
    }
    states = [
        module.weight.quant_state
        for module in model.modules()
        if isinstance(module, bnb.nn.Linear4bit)
    ]
    assert all(state.quant_type == "nf4" and state.nested for state in states)


def test_vision_alone_can_be_quantized():
    model, _, components = load_base(BaseSpec(bits=Bits(vision="nf4", language="fp32")))
    assert {components.component_of(name) for name in _quantized(model)} == {"vision"}


def test_16_bit_by_component():
    model, _, components = load_base(BaseSpec(bits=Bits(vision="bf16", language="fp32")))
    assert actual_bits(model, components) == {
        "vision": "bf16",
        "projector": "fp32",
        "language": "fp32",
    }


MIXED = Bits(vision="int8", projector="fp4", language="nf4")


def test_every_component_may_have_its_own_quantized_width():
    """One BitsAndBytesConfig cannot say it; the output head stays whole."""
    spec = BaseSpec(bits=MIXED)
    model, _, components = load_base(spec)
    bits = actual_bits(model, components)
    assert {name: width.split(" + ")[0] for name, width in bits.items()} == {
        "vision": "int8",
        "projector": "fp4",
        "language": "nf4",
    }
    assert type(model.lm_head) is nn.Linear
    whole, _, parts = load_base(BaseSpec(bits=Bits(language="fp32")))
    assert count_by_component(model, components) == count_by_component(whole, parts)


def test_a_width_of_our_own_replacement_is_that_of_transformers_own(pictures):
    """The vision tower in nf4 beside an int8 language model, and by itself: the same weights, bit by bit."""
    ours, _, _ = load_base(BaseSpec(bits=Bits(vision="nf4", language="int8")))
    theirs, _, _ = load_base(BaseSpec(bits=Bits(vision="nf4", language="fp32")))
    towers = [m.model.vision_tower.state_dict() for m in (ours, theirs)]
    assert towers[0].keys() == towers[1].keys()
    assert any("quant_state" in name for name in towers[0])
    assert all(torch.equal(towers[0][name], towers[1][name]) for name in towers[0])


@pytest.mark.parametrize(
    "bits",
    [
        MIXED,
        pytest.param(Bits(vision="int8", language="int8"), marks=pytest.mark.slow),
        pytest.param(Bits(vision="nf4", language="int8"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_lora_on_every_component_trains_at_mixed_widths(bits, pictures):
    model, processor, components = load_base(BaseSpec(bits=bits))
    lora = LoRA(r=2, dropout=0.0)
    attached = attach(Plan(vision=lora, projector=lora, language=lora), model, components)
    wrapped = {type(m).__module__ for m in model.modules() if hasattr(m, "lora_A")}
    assert wrapped <= {"peft.tuners.lora.bnb", "peft.tuners.lora.layer"}
    assert "peft.tuners.lora.bnb" in wrapped
    image = Image(str(pictures / "a.png"))
    batch = collate([Encoder(processor).encode(talk((image, "what part?"), "gear"))], 0)
    found = gradient_self_test(attached, batch)
    assert not found.problems
    assert all("layers.2" in name for name in found.unreachable)  # LLaVA's last tower layer


def test_the_compute_dtype_of_4_bit_layers_is_as_asked():
    for compute, dtype in (("auto", torch.float32), ("bf16", torch.bfloat16)):
        model, _, _ = load_base(BaseSpec(compute=compute))
        layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
        assert {m.compute_dtype for m in layers} == {dtype}


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_layer_that_is_quantized_again_is_as_the_one_before(double_quant):
    """Tower and language model are in unlike widths, so that the tower's layers are replaced one by one.

    Values are compared where rows are whole blocks of 64: bitsandbytes 0.50 reads others wrongly on a CPU.
    """
    bits = Bits(vision="fp4", language="nf4")
    model, _, components = load_base(BaseSpec(bits=bits, double_quant=double_quant, compute="bf16"))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    for component, width in (("vision", "fp4"), ("language", "nf4")):
        layer = next(m for n, m in layers.items() if components.component_of(n) == component)
        again = requantized(layer, 2 * dequantized(layer))
        for one in (layer, again):
            state = one.weight.quant_state
            assert (state.quant_type, state.nested) == (width, double_quant)
            assert (one.compute_dtype, one.training) == (torch.bfloat16, False)
        if component == "language":
            doubled = 2 * dequantized(layer)
            torch.testing.assert_close(dequantized(again), doubled, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("knob", [{"double_quant": False}, {"compute": "bf16"}], ids=str)
def test_knobs_of_4_bit_weights_without_any_are_refused(knob):
    with pytest.raises(UserError, match=r"has no effect: no component is in 4 bits"):
        BaseSpec(bits=Bits(language="fp32"), **knob)


def test_widths_a_device_cannot_hold_are_one_line():
    with pytest.raises(UserError, match=r"bits\.language=nf4 on mps: .*take bf16 or fp32"):
        resolve_bits(Bits(), torch.device("mps"))


def test_base_is_frozen_and_in_eval_mode(tiny_nf4):
    model, _, _ = tiny_nf4
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_gradients_after_an_eval_equal_those_before_by_value(tiny_nf4, pictures):
    """On AVX512-BF16 CPUs bitsandbytes repacks 4-bit weights at the first no-grad eval forward."""
    model, processor, components = tiny_nf4
    for module in model.modules():
        assert not getattr(module, "support_avx512bf16_for_cpu", False)
    plan = Plan(projector=Full(), language=LoRA(dropout=0.0))
    attached = attach(plan, model, components)
    randomize(attached)
    image = Image(str(pictures / "a.png"))
    batch = collate([Encoder(processor).encode(talk((image, "what part?"), "gear"))], 0)

    def gradients():
        model.zero_grad()
        supervised_loss(model, batch)[0].backward()
        return {name: parameter.grad.clone() for name, parameter in attached.trainable().items()}

    before = gradients()
    model.eval()
    with torch.no_grad():
        supervised_loss(model, batch)
    after = gradients()
    assert all(before[name].abs().max() > 0 for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_quantized_gradients_are_close_to_full_precision_ones(tiny, tiny_nf4, pictures):
    """A backward through NF4 points where the backward through fp32 does."""
    image = Image(str(pictures / "a.png"))
    flat = []
    for model, processor, components in (tiny, tiny_nf4):
        torch.manual_seed(1)
        attached = attach(Plan(projector=Full()), model, components)
        batch = collate(
            [Encoder(processor).encode(talk((image, "what part is at the top left?"), "gear"))], 0
        )
        supervised_loss(model, batch)[0].backward()
        flat.append(torch.cat([p.grad.flatten() for p in attached.trainable().values()]))
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.5


def test_fingerprint_does_not_depend_on_sharding_but_on_weights(tmp_path):
    source, one, many = base_dir("tiny"), tmp_path / "one", tmp_path / "many"
    model, _, _ = load_base(BaseSpec(bits=Bits(language="fp32")))
    model.save_pretrained(many, max_shard_size="1MB")
    assert len(list(many.glob("*.safetensors"))) > 1
    shutil.copytree(source, one)
    assert fingerprint(BaseSpec(path=str(one))) == fingerprint(BaseSpec(path=str(many)))
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(one)
    assert fingerprint(BaseSpec(path=str(one))) != fingerprint(BaseSpec())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", "not a folder"),
        ("some-org/some-model", "cannot be fetched from the hub"),
    ],
)
def test_a_base_that_cannot_be_had_is_one_line(path, message):
    with pytest.raises(UserError, match=message):
        load_base(BaseSpec(path=path))


def test_a_text_model_is_refused(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'llama' model, not a vision-language model"):
        load_base(BaseSpec(path=str(tmp_path)))


def test_a_folder_without_weights_is_one_line(tmp_path):
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{base_dir('tiny')}/{name}", tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_base(BaseSpec(path=str(tmp_path)))


def test_batch_normalisation_of_a_trained_component_stays_in_eval_mode(tiny):
    """Its running statistics are the base's, and no adapter carries them."""
    from vlmpeft.training.module import VLMModule

    model, _, components = tiny
    model.model.vision_tower.norm = nn.BatchNorm1d(4)
    module = VLMModule(plan=Plan(vision=LoRA(r=2)))
    module.model, module.components = model, components
    module.attached = attach(module.plan, model, components)
    module._set_modes()
    assert model.model.vision_tower.training
    assert not model.model.vision_tower.norm.training
    assert not model.model.language_model.training
