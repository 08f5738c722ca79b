"""The laws every strategy keeps, on every component it can be put on, in fp32 and in 4 bits."""

import pytest
import torch

from vlmpeft.adapters.loading import load_adapter
from vlmpeft.adapters.peft_form import is_expressible_in_peft
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.components import find_components
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base, meta_model
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import (
    IA3,
    AdaLoRA,
    BitFit,
    BottleneckAdapter,
    Component,
    DoRA,
    Full,
    LastLayers,
    LayerNormTuning,
    LoRA,
    Peft,
    PrefixTuning,
    PromptTuning,
    VeRA,
)
from vlmpeft.strategies.deltas import add_deltas
from vlmpeft.strategies.plan import Plan, attach
from vlmpeft.training.gradient_check import gradient_self_test

from ..conftest import randomize
from ..data.test_encode import Image, talk

BASE = BaseSpec(bits=Bits(language="fp32"))
EVERYWHERE = ("vision", "projector", "language")
STACKS = ("vision", "language")
# strategy -> where it can be; those in IN_PLACE train the base's own weights
STRATEGIES = {
    "full": (Full(), EVERYWHERE),
    "lora": (LoRA(r=4), EVERYWHERE),
    "rslora": (LoRA(r=4, rslora=True, init="gaussian"), EVERYWHERE),
    "pissa": (LoRA(r=4, init="pissa"), EVERYWHERE),
    "olora": (LoRA(r=4, init="olora"), EVERYWHERE),
    "dora": (DoRA(r=4), EVERYWHERE),
    "adalora": (AdaLoRA(target_r=2, init_r=4), EVERYWHERE),
    "vera": (VeRA(r=16), EVERYWHERE),
    "ia3": (IA3(), STACKS),
    "ia3 named": (IA3(targets=("linear_1",), feedforward=("linear_2",)), ("projector",)),
    "pfeiffer": (BottleneckAdapter(), EVERYWHERE),
    "houlsby": (BottleneckAdapter(style="houlsby", width=8), STACKS),
    "parallel": (BottleneckAdapter(style="parallel", activation="gelu", bias=False), EVERYWHERE),
    "prompt": (PromptTuning(n=3), STACKS),
    "prompt noise": (PromptTuning(n=2, init="random"), ("language",)),
    "prompt text": (PromptTuning(n=7, init="text", text="answer briefly"), ("language",)),
    "prompt deep": (PromptTuning(n=3, depth="deep"), ("vision",)),
    "prefix": (PrefixTuning(n=3), STACKS),
    "bitfit": (BitFit(), ("vision", "projector")),
    "layernorm": (LayerNormTuning(), STACKS),
    "last layers": (LastLayers(n=2), STACKS),
    "loha": (Peft("peft.LoHaConfig", {"r": 4}), EVERYWHERE),
    "lokr": (Peft("peft.LoKrConfig", {"r": 4}), EVERYWHERE),
    "oft": (Peft("peft.OFTConfig", {"r": 4, "oft_block_size": 0}), ("language",)),
    "fourierft": (
        Peft("peft.FourierFTConfig", {"n_frequency": 50, "init_weights": True}),
        EVERYWHERE,
    ),
}
NO_IDENTITY = ("prompt", "prompt noise", "prompt text", "prompt deep", "prefix")
NO_DELTAS = (*NO_IDENTITY, "pfeiffer", "houlsby", "parallel")  # no change of weights
IN_PLACE = ("full", "bitfit", "layernorm", "last layers")
CHANGES_WEIGHTS = ("pissa", "olora")  # while attached; what they take out they add again
QUANTIZABLE = (
    "lora",
    "rslora",
    "dora",
    "adalora",
    "ia3",
    "pfeiffer",
    "houlsby",
    "parallel",
    "prompt",
    "prefix",
    "layernorm",
)
CELLS = [(name, component) for name, (_, where) in STRATEGIES.items() for component in where]


@pytest.fixture
def cell(request, tiny):
    """(name, component, attached plan, model, batch) of one strategy on one component in fp32."""
    return _cell(*request.param, tiny)


@pytest.fixture
def quantized_cell(request, tiny_nf4):
    """The same with the language model in NF4."""
    return _cell(*request.param, tiny_nf4)


def _cell(name, component, loaded):
    model, _, components = loaded
    strategy, _ = STRATEGIES[name]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    attached = attach(Plan(**{component: strategy}), model, components)
    return name, component, attached, model, before


@pytest.fixture
def batch(tiny, pictures):
    image = Image(str(pictures / "a.png"))
    encoder = Encoder(tiny[1])
    return collate([encoder.encode(talk((image, "what part?"), "gear", "and now?", "a nut"))], 0)


def our_hooks(model):
    """Hooks that a strategy has put there; transformers has some of its own."""
    found = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    return [hook for hook in found if getattr(hook, "__module__", "").startswith("vlmpeft")]


def logits(model, batch):
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def gradients(attached, model, batch):
    model.zero_grad()
    supervised_loss(model, batch)[0].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


every_cell = pytest.mark.parametrize("cell", CELLS, indirect=True, ids=lambda c: f"{c[0]}-{c[1]}")


@every_cell
def test_identity_at_start(cell, batch, tiny):
    """Law 1: attached and untrained, the model answers as before."""
    name, _, attached, model, _ = cell
    with_it = logits(model, batch)
    attached.detach()
    if name in NO_IDENTITY:  # words before the text change its answer
        assert not torch.equal(with_it, logits(model, batch))
        return
    torch.testing.assert_close(with_it, logits(model, batch), rtol=1e-4, atol=1e-3)


@every_cell
def test_trainables_are_the_component_s_own_and_counted(cell):
    """Laws 2 and 9: nothing trains elsewhere; counts are those of the tensors."""
    name, component, attached, model, before = cell
    trainable = attached.trainable()
    assert trainable
    assert {attached.components.component_of(n) for n in trainable} == {component}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trainable)
    new = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in before.values())
    added = attached.summary()["added"]
    assert added == new
    ranks = len(attached.attachments) and sum("ranknum" in n for n, _ in model.named_parameters())
    assert added == (0 if name in IN_PLACE else sum(p.numel() for p in trainable.values()) + ranks)
    assert attached.summary()["total"] == sum(p.numel() for p in before.values())


@every_cell
def test_gradients_are_exactly_where_planned(cell, batch):
    """Law 7: every reachable trainable a finite non-zero one, no frozen parameter any."""
    _, component, attached, model, _ = cell
    randomize(attached, 1e-3)
    found = gradients(attached, model, batch)
    trainable = attached.trainable()
    assert found.keys() <= trainable.keys()
    dead = {n for n in trainable if n not in found or not found[n].abs().max() > 0}
    assert all(torch.isfinite(g).all() for g in found.values())
    *_, last = Component("vision", model, attached.components).blocks()  # LLaVA taps the one before
    unreachable = (f"{last}.", "post_layernorm", "class_embedding")
    assert all(component == "vision" and any(u in n for u in unreachable) for n in dead), dead


@every_cell
def test_training_changes_answers_and_detaching_restores_the_base_bitwise(cell, batch):
    """Laws 3 and 6."""
    name, _, attached, model, before = cell
    start = logits(model, batch)
    optimizer = torch.optim.SGD(attached.trainable().values(), lr=0.1)
    randomize(attached)
    gradients(attached, model, batch)
    optimizer.step()
    assert (logits(model, batch) - start).abs().max() > 1e-4
    if name not in (*IN_PLACE, *CHANGES_WEIGHTS):
        now = {n.replace(".base_layer.", "."): p for n, p in model.named_parameters()}
        assert all(torch.equal(now[n], p) for n, p in before.items())
    attached.detach()
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], p) for n, p in before.items())
    assert our_hooks(model) == []


@every_cell
def test_merged_answers_as_attached(cell, batch):
    """Law 5: dW added to the bare base; what has none says so."""
    name, component, attached, model, before = cell
    start = logits(model, batch)
    randomize(attached)
    ours = logits(model, batch)
    if name in NO_DELTAS:
        with pytest.raises(UserError, match=f"on {component} is no change of weights"):
            attached.deltas()
        return
    deltas = attached.deltas()
    attached.detach()
    assert deltas.keys() <= before.keys()
    take_away = add_deltas(model, deltas)
    assert (ours - start).abs().max() > 1e-2
    torch.testing.assert_close(logits(model, batch), ours, rtol=1e-4, atol=1e-3)
    take_away()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@every_cell
def test_saved_and_loaded_answers_are_equal(cell, batch, tiny, tmp_path):
    """Law 4."""
    name, _, attached, model, _ = cell
    randomize(attached)
    ours = logits(model, batch)
    save_adapter(tmp_path / "adapter", attached, processor=tiny[1], base=origin(BASE))
    again, _, components = load_base(BASE)
    load_adapter(tmp_path / "adapter", again, components)
    if name in CHANGES_WEIGHTS:  # the decomposition is computed again
        torch.testing.assert_close(logits(again, batch), ours, rtol=1e-4, atol=1e-3)
    else:
        assert torch.equal(logits(again, batch), ours)


@pytest.mark.parametrize(
    "quantized_cell", [(n, "language") for n in QUANTIZABLE], indirect=True, ids=lambda c: c[0]
)
def test_the_laws_on_a_4_bit_base(quantized_cell, batch):
    """Law 8: identity, gradients before and after an eval, the base unchanged."""
    name, _, attached, model, before = quantized_cell
    attached_start = logits(model, batch)
    randomize(attached, 1e-3)
    first = gradients(attached, model, batch)
    assert first.keys() == attached.trainable().keys()
    assert all(g.abs().max() > 0 for g in first.values())
    first = {n: g.clone() for n, g in first.items()}
    logits(model, batch)
    second = gradients(attached, model, batch)
    assert all(torch.equal(g, second[n]) for n, g in first.items())
    attached.detach()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    if name not in NO_IDENTITY:
        torch.testing.assert_close(logits(model, batch), attached_start, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["lora", "rslora", "dora", "ia3", "pfeiffer", "houlsby", "parallel"]
)
@pytest.mark.parametrize("component", ["vision", "language"])
def test_the_laws_on_an_8_bit_base(name, component, batch):
    """Gradients where planned and the same after an evaluation, the base unchanged, the answer too at the start."""
    loaded = load_base(BaseSpec(bits=Bits(vision="int8", language="int8")))
    start = logits(loaded[0], batch)
    _, _, attached, model, before = _cell(name, component, loaded)
    torch.testing.assert_close(logits(model, batch), start, rtol=1e-4, atol=1e-3)
    found = gradient_self_test(attached, batch)
    assert not found.problems
    assert attached.trainable().keys() - set(found.unreachable)
    attached.detach()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(logits(model, batch), start)


@every_cell
def test_no_graph_is_built_in_a_frozen_tower(cell, batch):
    """Nothing upstream is trained, so the tower's output needs no gradient."""
    _, component, attached, model, _ = cell
    seen = []
    handle = model.model.vision_tower.register_forward_hook(
        lambda _module, _args, output: seen.append(output.last_hidden_state.requires_grad)
    )
    supervised_loss(model.train(), batch)
    handle.remove()
    assert seen == [component == "vision" and bool(attached.trainable())]


def test_strategies_of_one_component_stay_apart(tiny):
    """A later one takes what earlier ones left of the base, never what they added."""
    model, _, components = tiny
    before = list(dict(model.named_modules()))
    two = [LoRA(r=2, targets=("q_proj",)), LoRA(r=2)]
    attached = attach(Plan(language=two), model, components)
    first, second = (set(a.targets) for a in attached.attachments if a.trainable)
    names = set(attached.trainable())
    attached.detach()
    assert {n.rpartition(".")[2] for n in first} == {"q_proj"}
    assert not first & second
    attached = attach(Plan(language=LoRA(r=2)), model, components)
    assert set(attached.trainable()) == names
    attached.detach()
    attached = attach(Plan(language=[BottleneckAdapter(), LoRA(r=2)]), model, components)
    assert set(attached.attachments[-1].targets) == first | second
    attached.detach()
    assert list(dict(model.named_modules())) == before


@pytest.mark.parametrize(
    ("strategies", "message"),
    [
        ([LoRA(r=2), LoRA(r=2)], "strategies before this one in the list have them all"),
        ([BitFit(), LayerNormTuning()], "BitFit and LayerNormTuning on vision both train"),
    ],
)
def test_strategies_that_want_the_same_are_refused_by_name(tiny, strategies, message):
    model, _, components = tiny
    before = list(dict(model.named_modules()))
    with pytest.raises(UserError, match=message):
        attach(Plan(vision=strategies), model, components)
    assert list(dict(model.named_modules())) == before


def test_components_may_have_different_strategies_at_once(tiny, batch, tmp_path):
    plan = Plan(
        vision=[LoRA(r=2), LayerNormTuning()],
        projector=BottleneckAdapter(width=8),
        language=[
            AdaLoRA(target_r=2, init_r=4, targets=("q_proj",)),
            DoRA(r=2, targets=("v_proj",)),
        ],
    )
    model, processor, components = tiny
    attached = attach(plan, model, components)
    randomize(attached)
    ours = logits(model, batch)
    base = BaseSpec(bits=Bits(language="fp32"))
    assert not is_expressible_in_peft(attached)
    save_adapter(tmp_path / "adapter", attached, processor=processor, base=origin(base))
    again, _, components = load_base(base)
    loaded = load_adapter(tmp_path / "adapter", again, components)
    assert torch.equal(logits(again, batch), ours)
    assert loaded.plan.to_dict() == plan.to_dict()


@pytest.mark.parametrize(
    "plan",
    [
        Plan(language=DoRA(r=4), projector=DoRA(r=2)),
        Plan(language=LoRA(r=4, rslora=True, rank_pattern={"q_proj": 2})),
        Plan(language=LoRA(r=4, alpha_pattern={"layers.0.self_attn.q_proj": 3.0})),
    ],
    ids=["dora", "rslora", "patterns"],
)
def test_plain_peft_answers_the_same(tiny, batch, tmp_path, plan):
    from peft import PeftModel

    model, processor, components = tiny
    attached = attach(plan, model, components)
    randomize(attached)
    ours = logits(model, batch)
    base = BaseSpec(bits=Bits(language="fp32"))
    save_adapter(tmp_path / "adapter", attached, processor=processor, base=origin(base))
    plain = PeftModel.from_pretrained(load_base(base)[0], tmp_path / "adapter")
    torch.testing.assert_close(logits(plain, batch), ours, rtol=1e-5, atol=1e-5)


def test_dora_and_lora_together_are_not_given_to_peft_as_one(tiny):
    model, _, components = tiny
    assert not is_expressible_in_peft(
        attach(Plan(language=DoRA(), projector=LoRA()), model, components)
    )
    assert is_expressible_in_peft(attach(Plan(language=LoRA()), *load_base(BaseSpec())[::2]))


@pytest.mark.parametrize(("style", "d_in"), [("parallel", 96), ("pfeiffer", 128)])
def test_the_reduction_of_a_bottleneck_is_of_the_width_that_goes_out(tiny, style, d_in):
    """A projector of 96 -> 128: b = 128 / 8, with biases."""
    model, _, components = tiny
    strategy = BottleneckAdapter(style=style, reduction=8)
    attached = attach(Plan(projector=strategy), model, components)
    trained = sum(p.numel() for p in attached.trainable().values())
    assert trained == (d_in * 16 + 16) + (16 * 128 + 128)


def test_lora_plus_gives_b_alone_its_rate(tiny):
    model, _, components = tiny
    plan = Plan(language=DoRA(r=4, learning_rate=1e-3, lora_plus_ratio=16))
    attached = attach(plan, model, components)
    groups = {group["lr"]: group["params"] for group in attached.parameter_groups()}
    assert groups.keys() == {1e-3, 16e-3}
    b = {id(p) for n, p in attached.trainable().items() if ".lora_B." in n}
    assert {id(p) for p in groups[16e-3]} == b


@pytest.mark.parametrize(
    ("component", "strategy", "message"),
    [
        ("language", lambda: BitFit(), "it has no bias at all"),
        ("projector", lambda: LastLayers(), "not a stack of layers"),
        ("language", lambda: LastLayers(n=9), "it has 4 layers"),
        ("projector", lambda: IA3(), "name them: targets, feedforward; it has linear_1"),
        ("projector", lambda: LayerNormTuning(), "no normalisation layer"),
        ("language", lambda: LoRA(r=4096), "give r <= "),
        ("language", lambda: LoRA(targets=()), "targets=.. on language names no layer"),
        ("language", lambda: BottleneckAdapter(width=8, reduction=4), "has no effect beside width"),
        ("language", lambda: LoRA(rank_pattern={"qproj": 2}), "no target is 'qproj'"),
        ("language", lambda: LoRA(lora_plus_ratio=0), "above 0"),
        ("language", lambda: AdaLoRA(target_r=9, init_r=4), "1 <= target_r <= init_r"),
        ("language", lambda: AdaLoRA(warmup=0.8, final=0.4), "together below 1"),
        ("language", lambda: Peft("peft.LoHaConfg"), "Did you mean LoHaConfig"),
        (
            "language",
            lambda: Peft("peft.PromptTuningConfig", {}),
            "Peft config=peft.PromptTuningConfig",
        ),
        ("language", lambda: Peft("peft.LoHaConfig", {"rank": 3}), "rank"),
        ("language", lambda: BottleneckAdapter(width=0), "at least 1"),
    ],
)
def test_what_cannot_work_is_refused_by_name_with_the_reason(tiny, component, strategy, message):
    model, _, components = tiny
    before = [n for n, _ in model.named_parameters()]
    with pytest.raises(UserError, match=message):
        attach(Plan(**{component: strategy()}), model, components)
    assert [n for n, _ in model.named_parameters()] == before


@pytest.mark.parametrize(
    "strategy", [Full(), LastLayers(), LoRA(init="pissa")], ids=["full", "last", "pissa"]
)
def test_what_needs_whole_weights_is_refused_on_a_quantized_component(tiny_nf4, strategy):
    model, _, components = tiny_nf4
    with pytest.raises(UserError, match=r"set model\.base\.bits\.language to bf16 or fp32"):
        attach(Plan(language=strategy), model, components)


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "pissa", "olora", "loftq"])
def test_every_start_of_a_lora_can_be_planned_without_weights(init):
    """As `plan`, `estimate` and `export` do before a base is loaded."""
    model = meta_model(BaseSpec())
    attached = attach(Plan(language=LoRA(r=4, init=init)), model, find_components(model))
    other = meta_model(BaseSpec())
    usual = attach(Plan(language=LoRA(r=4)), other, find_components(other))
    shapes = [{n: p.shape for n, p in a.trainable().items()} for a in (attached, usual)]
    assert shapes[0] == shapes[1]
