"""The nine laws (design of the conformance suite): every strategy on every component of every family."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmpeft.adapters.loading import load_adapter
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import recompute_activations
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.token_loss import has_encoder, supervised_loss
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import (
    IA3,
    AdaLoRA,
    BitFit,
    BottleneckAdapter,
    DoRA,
    Full,
    LastLayers,
    LayerNormTuning,
    LoRA,
    Peft,
    PrefixTuning,
    PromptTuning,
    Strategy,
    VeRA,
)
from vlmpeft.strategies.deltas import add_deltas
from vlmpeft.strategies.plan import AttachedPlan, Plan, attach
from vlmpeft.training.gradient_check import gradient_self_test

from .conftest import randomize
from .families.checks import Subject

COMPONENTS = ("vision", "projector", "language")
LAWS = {
    "1": "identity at start",
    "2": "the exact set of trainable names",
    "3": "the base bitwise unchanged after a step",
    "4": "saved and loaded, equal losses",
    "5": "merged equals attached",
    "6": "detaching restores the model",
    "7": "gradients exactly where planned, equal with checkpointing and after an evaluation",
    "9": "counts equal the closed form",
}  # law 8 is all of these on a 4-bit base


@dataclass(frozen=True)
class Kind:
    """A strategy and what holds of it.

    Args:
        strategy: as a plan has it.
        count: closed form of its trainable parameters, from the layers it names; None where none is published.
        starts_as_identity: prompts do not.
        has_deltas: whether it is a change of weights.
        is_in_place: trains the base's own weights, or takes a part out of them.
    """

    strategy: Strategy
    count: Callable[[list[tuple[int, int]]], int] | None = None
    starts_as_identity: bool = True
    has_deltas: bool = True
    is_in_place: bool = False


def _low_rank(r: int, more: Callable[[int, int], int] = lambda i, o: 0) -> Callable[..., int]:
    return lambda shapes: sum(r * (i + o) + more(i, o) for i, o in shapes)


KINDS = {
    "LoRA": Kind(LoRA(r=4, dropout=0.0), _low_rank(4)),
    "rsLoRA": Kind(LoRA(r=4, rslora=True, init="gaussian", dropout=0.0), _low_rank(4)),
    "LoRA pissa": Kind(LoRA(r=4, init="pissa", dropout=0.0), _low_rank(4), is_in_place=True),
    "LoRA olora": Kind(LoRA(r=4, init="olora", dropout=0.0), _low_rank(4), is_in_place=True),
    "LoRA loftq": Kind(
        LoRA(r=4, init="loftq", dropout=0.0), _low_rank(4), starts_as_identity=False
    ),
    "DoRA": Kind(DoRA(r=4, dropout=0.0), _low_rank(4, lambda i, o: o)),
    "AdaLoRA": Kind(AdaLoRA(target_r=2, init_r=4), _low_rank(4, lambda i, o: 4)),
    "VeRA": Kind(VeRA(r=16), lambda shapes: sum(16 + o for _, o in shapes)),
    "IA3": Kind(IA3()),
    "pfeiffer": Kind(BottleneckAdapter(width=8), has_deltas=False),
    "houlsby": Kind(BottleneckAdapter(style="houlsby", width=8), has_deltas=False),
    "parallel": Kind(BottleneckAdapter(style="parallel", width=8), has_deltas=False),
    "PromptTuning": Kind(PromptTuning(n=3), starts_as_identity=False, has_deltas=False),
    "PromptTuning deep": Kind(
        PromptTuning(n=3, depth="deep"), starts_as_identity=False, has_deltas=False
    ),
    "PrefixTuning": Kind(PrefixTuning(n=3), starts_as_identity=False, has_deltas=False),
    "BitFit": Kind(BitFit(), is_in_place=True),
    "LayerNormTuning": Kind(LayerNormTuning(), is_in_place=True),
    "LastLayers": Kind(LastLayers(n=2), is_in_place=True),
    "Full": Kind(Full(), is_in_place=True),
    "LoHa": Kind(
        Peft("peft.LoHaConfig", {"r": 4}), lambda shapes: sum(8 * (i + o) for i, o in shapes)
    ),
    "LoKr": Kind(Peft("peft.LoKrConfig", {"r": 4})),
    "OFT": Kind(Peft("peft.OFTConfig", {"r": 0, "oft_block_size": 4})),
    "FourierFT": Kind(
        Peft("peft.FourierFTConfig", {"n_frequency": 50, "init_weights": True}),
        lambda shapes: 50 * len(shapes),
    ),
}


@dataclass
class Bench:
    """A family's model at one width, and one batch of pictures of different sizes."""

    subject: Subject
    bits: dict[str, str]
    model: Any = field(init=False)
    encoder: Encoder = field(init=False)
    components: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model, self.encoder, self.components = self.subject.load(**self.bits)
        turns = ("a|what?", "that", "sure?", "yes")
        turns = turns[:2] if has_encoder(self.model) else turns  # which writes one answer
        self.batch = self.subject.batch(self.encoder, turns, ("b|what?", "this one"))
        _without_dropout(self.model)
        self.before = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.modules = [n for n, _ in self.model.named_modules()]

    def loss(self) -> float:
        with torch.no_grad():
            return float(supervised_loss(self.model.eval(), self.batch)[0])


def _without_dropout(model: Any) -> None:
    """Also where it is a number in a module or its config: gradients of two passes are compared."""
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for key, value in dict(vars(holder) if holder is not None else {}).items():
                if "drop" in key and isinstance(value, float):
                    setattr(holder, key, 0.0)


def run_cell(bench: Bench, kind: Kind, component: str) -> dict[str, str]:
    """Law -> why it does not hold, "" if it does; {"refused": reason} if the strategy refuses the component."""
    start = bench.loss()
    attached = None
    try:
        attached = attach(Plan(**{component: kind.strategy}), bench.model, bench.components)
        bench.loss()  # a few can only be refused when they see what a layer gets
    except UserError as error:
        if attached:
            attached.detach()
        broken = _reason(lambda: _restored(bench, start))
        return {"refused": str(error)} | ({"6": broken} if broken else {})
    except Exception as error:  # noqa: BLE001  it stands there and cannot run
        attached and attached.detach()
        return {"2": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    try:
        return {
            law: _reason(check) for law, check in _laws(bench, kind, component, attached, start)
        }
    finally:
        attached.detach()


def _reason(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:  # noqa: BLE001  whatever breaks a law is written down
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def _laws(
    bench: Bench, kind: Kind, component: str, attached: AttachedPlan, start: float
) -> Iterator[tuple[str, Callable[[], None]]]:
    """In an order in which each leaves what the next needs."""
    yield "2", lambda: _names(bench, component, attached)
    yield "9", lambda: _counts(bench, kind, attached)
    if kind.starts_as_identity:
        yield "1", lambda: _close(bench.loss(), start)
    randomize(attached)
    yield "7", lambda: _gradients(bench, attached)
    yield "3", lambda: _step(bench, kind, attached)
    if kind.has_deltas:
        yield "5", lambda: _merged(bench, attached)
    yield "4", lambda: _saved(bench, attached)
    yield "6", lambda: _restored(bench, start)


def _close(one: float, other: float) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-3)


def _names(bench: Bench, component: str, attached: AttachedPlan) -> None:
    trainable = attached.trainable()
    assert trainable
    assert {bench.components.component_of(n) for n in trainable} == {component}
    assert {n for n, p in bench.model.named_parameters() if p.requires_grad} == set(trainable)


def _counts(bench: Bench, kind: Kind, attached: AttachedPlan) -> None:
    summary = attached.summary()
    trainable = sum(p.numel() for p in attached.trainable().values())
    new = sum(p.numel() for p in bench.model.parameters()) - sum(
        p.numel() for p in bench.before.values()
    )
    assert summary["trainable"] == trainable, (summary["trainable"], trainable)
    assert summary["added"] == new, (summary["added"], new)
    if kind.is_in_place and ".lora_" not in next(iter(attached.trainable())):
        assert new == 0
    if kind.count:
        modules = dict(bench.model.named_modules())
        layers = [modules[target] for a in attached.attachments for target in a.targets]
        shapes = [(layer.in_features, layer.out_features) for layer in layers]
        assert trainable == kind.count(shapes), (trainable, kind.count(shapes))


def _gradients(bench: Bench, attached: AttachedPlan) -> None:
    found = gradient_self_test(attached, bench.batch)
    assert not found.problems, found.problems[:2]
    reached = attached.trainable().keys() - {*found.unreachable}
    assert reached, "no trainable tensor is reached"
    plain = _all_gradients(bench, attached)
    _set_checkpointing(bench.model, True)
    try:
        again = _all_gradients(bench, attached)
    finally:
        _set_checkpointing(bench.model, False)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-3, atol=1e-4)


def _all_gradients(bench: Bench, attached: AttachedPlan) -> dict[str, torch.Tensor]:
    """In train mode, where checkpointing acts; dropout of the tiny models is zero."""
    bench.model.zero_grad()
    bench.model.train()
    for module in bench.model.modules():
        if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm):
            module.eval()
    supervised_loss(bench.model, bench.batch)[0].backward()
    bench.model.eval()
    found = {n: p.grad.clone() for n, p in attached.trainable().items() if p.grad is not None}
    bench.model.zero_grad()
    return found


def _set_checkpointing(model: Any, on: bool) -> None:
    if not model.supports_gradient_checkpointing:
        return
    if on:
        recompute_activations(model)
    else:
        disable = getattr(model, "activation_checkpointing_disable", None)
        (disable or model.gradient_checkpointing_disable)()


def _step(bench: Bench, kind: Kind, attached: AttachedPlan) -> None:
    """One step changes the answer and, of the base, nothing."""
    before = bench.loss()
    supervised_loss(bench.model, bench.batch)[0].backward()
    with torch.no_grad():
        for parameter in attached.trainable().values():
            if parameter.grad is not None:
                parameter.sub_(0.05 * parameter.grad.sign())
    bench.model.zero_grad()
    assert bench.loss() != before, "a step changes nothing"
    if not kind.is_in_place:
        now = {n.replace(".base_layer.", "."): p for n, p in bench.model.named_parameters()}
        assert all(torch.equal(now[n], p) for n, p in bench.before.items())


def _merged(bench: Bench, attached: AttachedPlan) -> None:
    """The base is put back with the adapter on it, as the next law needs it."""
    ours, deltas = bench.loss(), attached.deltas()
    kept = {n: p.detach().clone() for n, p in attached.trainable().items()}
    plan = attached.plan
    attached.detach()
    take_away = add_deltas(bench.model, deltas)
    merged = bench.loss()
    take_away()
    again = attach(plan, bench.model, bench.components)
    attached.attachments = again.attachments
    with torch.no_grad():
        for name, parameter in attached.trainable().items():
            parameter.copy_(kept[name])
    _close(merged, ours)


def _saved(bench: Bench, attached: AttachedPlan) -> None:
    ours = bench.loss()
    folder = Path(bench.subject.scratch) / "adapter"
    spec = bench.subject.spec(**bench.bits)
    save_adapter(folder, attached, processor=bench.encoder.processor, base=origin(spec))
    attached.detach()
    loaded = load_adapter(folder, bench.model, bench.components)
    attached.attachments = loaded.attachments
    _close(bench.loss(), ours)
    attached.detach()


def _restored(bench: Bench, start: float) -> None:
    assert [n for n, _ in bench.model.named_modules()] == bench.modules
    now = dict(bench.model.named_parameters())
    assert now.keys() == bench.before.keys()
    assert all(torch.equal(now[n], p) for n, p in bench.before.items())
    assert not any(p.requires_grad for p in now.values())
    assert bench.loss() == start
