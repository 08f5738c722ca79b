"""Prompts and prefixes do what their equations say, in training, in generation and in scoring."""

import pytest
import torch
from transformers import DynamicCache

from vlmpeft.base.loading import load_base, recompute_activations
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.batches.collate import collate, collate_prompts
from vlmpeft.data.batches.dataset import Item
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.decoding import Limits, WholePrompts
from vlmpeft.evaluation.prefix_cache import SharedPrefixes
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.evaluation.tower_cache import FeatureCache
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import LoRA, PrefixTuning, PromptTuning
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import randomize
from ..data.test_encode import Image, talk
from ..families import save_qwen
from ..families.gemma import save_gemma3


@pytest.fixture
def talks(pictures):
    image, other = (Image(str(pictures / f"{name}.png")) for name in "ab")
    return [
        talk((image, "what part is it?"), "gear"),
        talk((image, "and its colour?"), "red"),
        talk("no picture at all", "nut"),
        talk((other, "hm"), "gear"),
    ]


@pytest.fixture
def batch(tiny, talks):
    return collate([Encoder(tiny[1]).encode(one) for one in talks], 0)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits


def one(batch):
    """The first row, which has a picture and no padding at its end."""
    length = int(batch["attention_mask"][0].sum())
    rows = {k: v[:1, :length] for k, v in batch.items() if k != "pixel_values"}
    return rows | {"pixel_values": batch["pixel_values"][:1]}


def test_soft_tokens_are_what_stands_before_the_embeddings(tiny, batch):
    """By hand: embed, put the picture in, put the prompt before it, run the decoder and the head."""
    model, _, components = tiny
    batch = one(batch)
    embedded = model.model.get_input_embeddings()(batch["input_ids"])
    features = model.model.get_image_features(batch["pixel_values"]).pooler_output
    places = batch["input_ids"] == model.config.image_token_id
    embedded[places] = (
        torch.cat(list(features)) if isinstance(features, (list, tuple)) else features.flatten(0, 1)
    )
    attached = attach(Plan(language=PromptTuning(n=5)), model, components)
    (prompt,) = attached.trainable().values()
    ours = logits(model, batch)
    attached.detach()
    whole = torch.cat([prompt.detach()[None], embedded], 1)
    hidden = model.model.language_model(inputs_embeds=whole).last_hidden_state
    torch.testing.assert_close(ours, model.lm_head(hidden)[:, 5:], rtol=1e-4, atol=1e-4)


def test_a_prefix_is_what_a_cache_with_its_keys_and_values_would_be(tiny, batch):
    """transformers' own cache, filled with the prefix; the real tokens keep their positions."""
    model, _, components = tiny
    batch = one(batch)
    attached = attach(Plan(language=PrefixTuning(n=5)), model, components)
    randomize(attached)
    weights = [p.detach().clone() for p in attached.trainable().values()]
    ours = logits(model, batch)
    attached.detach()
    cache = DynamicCache()
    for layer, weight in enumerate(weights):
        cache.update(weight[0][None], weight[1][None], layer)
    length = batch["input_ids"].shape[1]
    inputs = {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"]}
    with torch.no_grad():
        theirs = model(
            **inputs,
            attention_mask=torch.ones(1, 5 + length, dtype=torch.long),
            position_ids=torch.arange(length)[None],
            past_key_values=cache,
        ).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_visual_prompts_are_what_the_tower_s_layers_see(tiny, batch, depth):
    """By hand: tokens behind the patches before every layer (deep) or the first (shallow)."""
    model, _, components = tiny
    tower = model.model.vision_tower
    attached = attach(Plan(vision=PromptTuning(n=4, depth=depth)), model, components)
    randomize(attached)
    (weight,) = (p.detach().clone() for p in attached.trainable().values())
    with torch.no_grad():
        ours = tower(batch["pixel_values"], output_hidden_states=True)
    attached.detach()
    with torch.no_grad():
        plain = tower(batch["pixel_values"], output_hidden_states=True)
        hidden = plain.hidden_states[0]
        states, count = [hidden], hidden.shape[1]
        for number, layer in enumerate(component_layers(tower)):
            if depth == "deep" or number == 0:
                more = weight[number if depth == "deep" else 0].expand(len(hidden), -1, -1)
                hidden = torch.cat([hidden[:, :count], more], 1)
            hidden = layer(hidden, None)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            states.append(hidden[:, :count])
    assert [s.shape for s in ours.hidden_states] == [s.shape for s in plain.hidden_states]
    for one_of_ours, by_hand in zip(ours.hidden_states[:-1], states[:-1], strict=True):
        torch.testing.assert_close(one_of_ours, by_hand, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours.hidden_states[1], plain.hidden_states[1])


def component_layers(tower):
    return next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList))


PLANS = {
    "prompt": Plan(language=PromptTuning(n=5)),
    "prefix": Plan(language=PrefixTuning(n=5)),
    "both": Plan(language=[PromptTuning(n=2), PrefixTuning(n=3), LoRA(r=2, dropout=0)]),
    "vision": Plan(vision=PromptTuning(n=3), language=PromptTuning(n=4)),
    "vision deep": Plan(vision=[PromptTuning(n=3, depth="deep"), PrefixTuning(n=2)]),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_shared_prefixes_answer_as_whole_prompts_do(tiny, talks, plan):
    model, processor, components = tiny
    attached = attach(plan, model, components)
    randomize(attached)
    encoder = Encoder(processor)
    samples = [(Item(str(n), t, 1), encoder.encode(t, 1)) for n, t in enumerate(talks)]
    choices = [[[7, 1], [9, 4, 1]]] * len(samples)
    limits = Limits(6, (), 0)
    shared = SharedPrefixes(model, limits, FeatureCache(model))
    assert shared.serves(samples)
    with torch.no_grad():
        ours = shared.decode(samples, choices)
        plain = WholePrompts(model, limits).decode(samples, choices)
    for a, b in zip(ours, plain, strict=True):
        assert a.ids == b.ids
        assert a.losses == pytest.approx(b.losses, rel=1e-3, abs=1e-4)
        assert a.choices == pytest.approx(b.choices, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_generation_with_a_cache_is_the_argmax_of_whole_forwards(tiny, talks, plan):
    _generates_as_forwards(tiny, talks, plan)


@pytest.mark.parametrize("plan", [PLANS["prompt"], PLANS["both"]], ids=["prompt", "both"])
def test_it_is_so_with_positions_in_three_streams(qwen, talks, plan):
    """Prompt tuning that yields garbage on Qwen2.5-VL: huggingface/peft#2899."""
    _generates_as_forwards(load_base(BaseSpec(str(qwen), Bits(language="fp32"))), talks, plan)


def _generates_as_forwards(loaded, talks, plan):
    model, processor, components = loaded
    attached = attach(plan, model, components)
    randomize(attached)
    encoder = Encoder(processor)
    samples = [encoder.encode(t, 1) for t in talks]
    with torch.no_grad():
        together = model.generate(**collate_prompts(samples, 0), max_new_tokens=5, do_sample=False)
        for sample, row in zip(samples, together[:, -5:].tolist(), strict=True):
            start = sample.turns[0][0]
            answer = [token for token in row if token != 0]  # filler after an early end
            assert answer
            for step in range(len(answer)):
                ids = sample.with_answer(start, start + step, row[:step])
                whole = collate([ids], 0)
                whole.pop("labels")
                assert model(**whole, use_cache=False).logits[0, -1].argmax() == row[step]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_gradients_are_the_same_with_checkpointing(tiny, batch, plan):
    model, _, components = tiny
    attached = attach(plan, model, components)
    randomize(attached)
    model.train()
    supervised_loss(model, batch)[0].backward()
    plain = {n: p.grad.clone() for n, p in attached.trainable().items() if p.grad is not None}
    model.zero_grad()
    recompute_activations(model)
    supervised_loss(model, batch)[0].backward()
    again = {n: p.grad for n, p in attached.trainable().items() if p.grad is not None}
    assert plain.keys() == again.keys()
    assert plain
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("component", "strategy", "message"),
    [
        ("projector", lambda: PromptTuning(), "has no sequence that tokens could be added to"),
        ("projector", lambda: PrefixTuning(), "no attention layer"),
        ("language", lambda: PromptTuning(depth="deep"), "take PrefixTuning"),
        ("vision", lambda: PromptTuning(init="vocabulary"), "patches have no vocabulary"),
        ("vision", lambda: PrefixTuning(init="text", text="a"), "it has no vocabulary"),
        ("language", lambda: PromptTuning(n=0), "at least 1"),
        ("language", lambda: PromptTuning(text="a"), "go together"),
        ("language", lambda: PrefixTuning(init="text"), "go together"),
        ("language", lambda: [PromptTuning(), PromptTuning()], "stands there already"),
        ("vision", lambda: [PromptTuning(), PromptTuning()], "stands there already"),
        ("language", lambda: [PrefixTuning(), PrefixTuning()], "stands there already"),
    ],
)
def test_what_cannot_work_refuses_by_name_and_leaves_no_trace(tiny, component, strategy, message):
    model, _, components = tiny
    before = [n for n, _ in model.named_parameters()]
    with pytest.raises(UserError, match=message):
        attach(Plan(**{component: strategy()}), model, components)
    assert [n for n, _ in model.named_parameters()] == before
    assert not any("forward" in vars(m) for m in model.modules())


def test_towers_with_rotary_positions_refuse_visual_prompts(qwen):
    model, _, components = load_base(BaseSpec(str(qwen)))
    with pytest.raises(UserError, match=r"takes .*cu_seqlens.*learned positions; take LoRA"):
        attach(Plan(vision=PromptTuning()), model, components)


def test_text_starts_are_the_text_s_embeddings_repeated(tiny):
    model, processor, components = tiny
    ids = processor.tokenizer("a nut", add_special_tokens=False)["input_ids"]
    attached = attach(
        Plan(language=PromptTuning(n=2 * len(ids), init="text", text="a nut")), model, components
    )
    (weight,) = attached.trainable().values()
    expected = model.get_input_embeddings().weight[torch.tensor([*ids, *ids])]
    assert torch.equal(weight, expected)


def test_text_starts_of_gemma_are_as_large_as_the_words_that_follow(tmp_path):
    """Its embedding multiplies by the square root of the width."""
    spec = BaseSpec(path=str(save_gemma3(tmp_path)), bits=Bits(language="fp32"))
    model, processor, components = load_base(spec)
    ids = processor.tokenizer("a nut", add_special_tokens=False)["input_ids"]
    attached = attach(
        Plan(language=PromptTuning(n=len(ids), init="text", text="a nut")), model, components
    )
    (weight,) = attached.trainable().values()
    rows = model.get_input_embeddings().weight[torch.tensor(ids)]
    torch.testing.assert_close(weight, rows * model.config.text_config.hidden_size**0.5)
