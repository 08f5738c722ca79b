"""Odd families from pictures to losses: what their processors and models do that others do not."""

import pytest
import torch
from torch import nn

from vlmpeft.base.components import Components
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.dataset import Item
from vlmpeft.data.batches.encode import IGNORE
from vlmpeft.evaluation.decoding import Limits, WholePrompts
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.evaluation.tower_cache import FeatureCache
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import LoRA
from vlmpeft.strategies.contract import Component
from vlmpeft.strategies.plan import Plan, attach

from ..families import FAMILIES
from ..families.checks import Subject, draw_pictures, pad_id


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Family name -> a tiny model of it; each is saved once."""
    pictures = draw_pictures(tmp_path_factory.mktemp("pictures"))
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("family")
            FAMILIES[name].save(folder)
            made[name] = Subject(folder, pictures, folder)
        return made[name]

    return make


@pytest.mark.parametrize("name", ["mistral3", "molmo2", "minicpmv4_6", "kimi_k25"])
def test_cached_features_give_the_answers_of_pictures_looked_at_each_time(subject, name):
    """Pictures of other sizes, patches numbered over a batch and patches in one strip are joined alike."""
    model, encoder, _ = subject(name).load()
    turns = [("a|what?", "x"), ("c|hm", "x"), ("a|b|same?", "no"), ("a|and?", "yy"), ("hi", "x")]
    talks = [subject(name).talk(*turn) for turn in turns]
    samples = [(Item(str(n), talk, 1), encoder.encode(talk, 1)) for n, talk in enumerate(talks)]
    limits, features = Limits(4, (), pad_id(encoder)), FeatureCache(model)
    with torch.no_grad():
        cached = WholePrompts(model, limits, features).decode(samples, [[]] * len(samples))
        plain = WholePrompts(model, limits).decode(samples, [[]] * len(samples))
    assert features._features
    assert [d.ids for d in cached] == [d.ids for d in plain]
    for one, other in zip(cached, plain, strict=True):
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["blip-2", "instructblip", "kosmos-2", "florence2"])
def test_labels_stay_on_the_answer_when_a_processor_puts_the_picture_first(subject, name):
    _, encoder, _ = subject(name).load()
    encoded = encoder.encode(subject(name).talk("a|what?", "that"))
    decode = encoder.processor.tokenizer.decode
    ((start, end),) = encoded.turns
    assert decode(encoded.input_ids[start:end]) == "that<|im_end|>"
    assert decode(encoded.input_ids[:start]).endswith("assistant\n")
    assert (encoded.labels != IGNORE).sum() == end - start


@pytest.mark.parametrize("name", ["blip-2", "instructblip", "kosmos-2", "florence2"])
def test_a_second_picture_is_refused_where_a_processor_knows_one(subject, name):
    """BLIP-2 would ignore it in silence."""
    _, encoder, _ = subject(name).load()
    with pytest.raises(UserError):
        encoder.encode(subject(name).talk("a|b|what?", "that"))


def test_a_q_former_never_reads_an_answer(subject):
    _, encoder, _ = subject("instructblip").load()
    talks = [("a|what?", "that"), ("a|what?", "quite another"), ("a|what?", "no", "sure?", "yes")]
    read = [
        encoder.encode(subject("instructblip").talk(*talk)).model_inputs["qformer_input_ids"]
        for talk in talks
    ]
    text = encoder.processor.qformer_tokenizer.decode(read[0][0])
    assert text.endswith("what?<|im_end|>\n<|im_start|>assistant\n")
    assert all(torch.equal(ids, read[0]) for ids in read)


def test_a_choice_looks_at_the_prompt_s_pictures_as_an_answer_does(subject):
    """Llama 3.2 Vision: cross-attention masks have a row a token."""
    model, encoder, _ = subject("mllama").load()
    encoded = encoder.encode(subject("mllama").talk("a|b|same?", "no"), 1)
    ((start, end),) = encoded.turns
    again = encoded.with_answer(start, end, encoded.input_ids[start:end].tolist())
    mask = again.model_inputs["cross_attention_mask"][0, start:]
    assert mask.any(-1).all(), "each of the two pictures is looked at"
    losses = [supervised_loss(model, collate([one], 0))[0] for one in (encoded, again)]
    assert torch.equal(*losses)


def test_lora_leaves_out_linears_that_are_not_called_as_such(subject):
    model, _, components = subject("llama4").load()
    language = Component("language", model, components)
    routers = {name for name, _ in model.named_modules() if name.endswith(".router")}
    assert routers
    assert not routers & language.match_linears(None).keys()
    with pytest.raises(UserError, match="no plain linear layer"):
        language.match_linears(("router",))
    attention = nn.ModuleDict({"tower": nn.MultiheadAttention(8, 2), "mlp": nn.Linear(8, 8)})
    components = Components({"vision": ("tower", "mlp")}, ())
    assert Component("vision", attention, components).linears().keys() == {"mlp"}


def test_lora_wraps_exact_names_beside_fused_experts(subject):
    """PEFT takes any `gate_proj` of such a model for the experts; so loading it plainly would go wrong."""
    model, _, components = subject("glm4v_moe").load()
    plan = Plan(vision=LoRA(r=2), language=LoRA(r=2, targets=("gate_proj", "up_proj", "down_proj")))
    attached = attach(plan, model, components)
    for attachment in attached.attachments:
        if attachment.targets:
            assert any(target.endswith("mlp.gate_proj") for target in attachment.targets)
            assert all(
                f"{t}.lora_A.default.weight" in attachment.trainable for t in attachment.targets
            )
            assert attachment.peft is None
    model, _, components = subject("glm4v_moe").load()
    (plain,) = [
        attachment
        for attachment in attach(
            Plan(language=LoRA(targets=("q_proj",))), model, components
        ).attachments
        if attachment.targets
    ]
    assert plain.peft is not None


@pytest.mark.parametrize(
    ("name", "whole"), [("ernie4_5_vl_moe", "patch_embed.proj"), ("kosmos-2", "text_model.lm_head")]
)
def test_heads_and_patch_embeddings_stay_whole_in_a_quantized_component(subject, name, whole):
    model, _, components = subject(name).load(vision="nf4", language="nf4")
    (module,) = [m for n, m in model.named_modules() if n.endswith(whole)]
    assert type(module) is nn.Linear
    assert module.weight.is_floating_point()
    assert any(n.endswith(whole) for n in components.kept_whole())


def test_pictures_reach_the_tower_in_fp32(subject):
    """Llama 4's processor rounds them to bf16."""
    _, encoder, _ = subject("llama4").load()
    encoded = encoder.encode(subject("llama4").talk("a|what?", "that"))
    assert encoded.model_inputs["pixel_values"].dtype == torch.float32


def test_an_encoder_decoder_s_loss_is_that_of_transformers_on_prompt_and_answer_apart(subject):
    model, encoder, _ = subject("florence2").load()
    encoded = [
        encoder.encode(subject("florence2").talk(*talk))
        for talk in (("a|what?", "that"), ("b|and this one?", "another"))
    ]
    expected = 0.0
    for one in encoded:
        ((start, end),) = one.turns
        output = model(
            input_ids=one.input_ids[None, :start],
            labels=one.input_ids[None, start:end],
            pixel_values=one.model_inputs["pixel_values"],
        )
        expected += float(output.loss) * (end - start)
    loss, tokens = supervised_loss(model, collate(encoded, pad_id(encoder)))
    assert tokens == sum((one.labels != IGNORE).sum() for one in encoded)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_several_answers_are_refused_by_an_encoder_decoder(subject):
    model, encoder, _ = subject("florence2").load()
    batch = subject("florence2").batch(encoder, ("a|what?", "that", "sure?", "yes"))
    with pytest.raises(UserError, match="one answer"):
        supervised_loss(model, batch)
