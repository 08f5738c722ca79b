"""The identity law of merging: one adapter, by any rule that drops nothing, answers as itself."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from vlmpeft.adapters.loading import load_adapter
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.merging.merger import read_adapters
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.rule_table import RULES
from vlmpeft.merging.strategy import Merged
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.registry import STRATEGIES
from vlmpeft.strategies import IA3, BottleneckAdapter, LayerNormTuning, LoRA, Peft
from vlmpeft.strategies.dense import Dense
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import randomize
from ..data.test_encode import Image, talk
from ..laws import COMPONENTS, KINDS

TOLERANCE = 1e-5  # of |delta logits|, as a share of the largest logit
STACKS = ("vision", "language")
FP32, NF4 = BaseSpec(bits=Bits(language="fp32")), BaseSpec()
ONLY_ON = {  # of those that do not go on every component
    "LoRA loftq": ("language",),  # in NF4
    "IA3": STACKS,
    "IA3 named": ("projector",),
    "PromptTuning": STACKS,
    "PromptTuning deep": ("vision",),
    "PrefixTuning": STACKS,
    "BitFit": ("vision", "projector"),
    "LayerNormTuning": STACKS,
    "LastLayers": STACKS,
    "a list": STACKS,
}
MORE: dict[str, Any] = {
    "IA3 named": IA3(targets=("linear_1",), feedforward=("linear_2",)),
    "HRA": Peft("peft.HRAConfig", {"r": 4}),
    "a list": [LayerNormTuning(), LoRA(r=2, targets=("v_proj",), dropout=0.0)],
    "Dense": None,  # of names that a component has
    "Merged": None,  # of an adapter that was written before
}
CASES = {name: kind.strategy for name, kind in KINDS.items()} | MORE
CELLS = [(name, c) for name in CASES for c in ONLY_ON.get(name, COMPONENTS)]
FAST = (  # a product, a dense dW, weights in place, and no dW
    ("LoRA", "projector"),
    ("DoRA", "projector"),
    ("LayerNormTuning", "language"),
    ("pfeiffer", "vision"),
)
FAINT = ("VeRA", "PrefixTuning", "BitFit")  # of little effect: larger values
# a weight that is seen to be too small, if not 0.99: what is normalised before it is read depends little on its size
TOO_SMALL = {"PromptTuning deep": 0.9}
# a rule of each way the engine has: a weighted sum, an angle, cuts, drops, and drops of a whole tensor
FAMILIES = ("linear", "slerp", "ties", "dare_linear", "della")


@dataclass
class Bench:
    """A base and one conversation about a picture."""

    spec: BaseSpec
    model: Any
    processor: Any
    components: Any
    picture: str

    def __post_init__(self):
        talked = talk((Image(self.picture), "what part?"), "gear", "and now?", "a nut")
        batch = collate([Encoder(self.processor).encode(talked)], 0)
        wide = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        self.inputs = {key: value for key, value in wide.items() if key != "labels"}

    def answers(self, attached):
        """Logits in fp64, so that no rounding of the forward hides what weights differ by; detaches.

        Whatever is attached is of fp32 before and after, bit for bit.
        """
        nn.Module.double(self.model)  # transformers' own refuses models with quantized layers
        try:
            with torch.no_grad():
                return self.model.eval()(**self.inputs).logits
        finally:
            nn.Module.float(self.model)
            attached.detach()

    def loaded(self, folder):
        return self.answers(load_adapter(folder, self.model, self.components))

    def merged(self, folders, component, rule, **knobs):
        plan = Plan(**{component: Merged(tuple(map(str, folders)), rule, **knobs)})
        return self.answers(attach(plan, self.model, self.components))

    def write(self, strategy, component, folder, scale=0.05):
        attached = attach(Plan(**{component: strategy}), self.model, self.components)
        randomize(attached, scale)
        save_adapter(folder, attached, processor=self.processor, base=origin(self.spec))
        attached.detach()
        return folder


@pytest.fixture(scope="module")
def fp32(_tiny_once, pictures):
    return Bench(FP32, *copy.deepcopy(_tiny_once), str(pictures / "a.png"))


@pytest.fixture(scope="module")
def nf4(pictures):
    return Bench(NF4, *load_base(NF4), str(pictures / "a.png"))


@pytest.fixture
def cell(request, fp32, tmp_path):
    """(bench, component, folder of an adapter of one strategy on it, a weight that is seen to be too small)."""
    name, component = request.param
    bench = request.getfixturevalue("nf4") if name == "LoRA loftq" else fp32
    strategy = CASES[name]
    if name == "Merged":
        first = bench.write(LoRA(r=4, dropout=0.0), component, tmp_path / "first")
        strategy = Merged((str(first),), "average")
    if name == "Dense":
        named = bench.model.named_parameters()
        here = [n for n, _ in named if bench.components.component_of(n) == component]
        strategy = Dense(names=tuple(here[:6]))
    scale = 0.5 if name in FAINT else 0.05
    folder = bench.write(strategy, component, tmp_path / "adapter", scale)
    return bench, component, folder, TOO_SMALL.get(name, 0.99)


every_cell = pytest.mark.parametrize(
    "cell",
    [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CELLS],
    indirect=True,
    ids=lambda c: f"{c[0]}-{c[1]}",
)


def at_weight_one(rule):
    """(how many times the adapter goes in, knobs such that nothing is dropped): slerp is with itself."""
    times = 2 if rule == "slerp" else 1
    usual = {"weights": (1.0,) * times, "density": 1.0}
    return times, {knob: value for knob, value in usual.items() if knob in RULES[rule].knobs}


def off(found, ours):
    assert found.dtype == ours.dtype == torch.float64
    return ((found - ours).abs().max() / ours.abs().max()).item()


@every_cell
def test_one_adapter_merged_answers_as_itself_by_every_rule(cell):
    """And the base is afterwards what it was; a merge that is one percent short would be seen."""
    bench, component, folder, too_small = cell
    before = {n: p.clone() for n, p in bench.model.state_dict().items()}
    ours = bench.loaded(folder)
    found = {}
    for rule in RULES:
        times, knobs = at_weight_one(rule)
        found[rule] = off(bench.merged([folder] * times, component, rule, **knobs), ours)
    assert max(found.values()) <= TOLERANCE, found
    short = bench.merged([folder], component, "task_arithmetic", weights=(too_small,))
    assert off(short, ours) > 2 * TOLERANCE
    now = bench.model.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(before[n], p) for n, p in now.items())


@every_cell
def test_one_adapter_merged_and_written_answers_as_itself(cell, tmp_path):
    """By a rule of each family, with rank full."""
    bench, _, folder, _ = cell
    ours = bench.loaded(folder)
    twice = read_adapters([folder, folder])
    found = {}
    for rule in FAMILIES:
        times, knobs = at_weight_one(rule)
        merger = replace(twice, operands=twice.operands[:times])
        recipe = Recipe(rule, rank="full", **knobs)
        merger.save(merger.merge(recipe), recipe, tmp_path / rule)
        found[rule] = off(bench.loaded(tmp_path / rule), ours)
    assert max(found.values()) <= TOLERANCE, found


def test_every_strategy_has_a_cell():
    held = [s for case in CASES.values() if case for s in (case if type(case) is list else [case])]
    assert {type(s).__name__ for s in held} | {"Dense", "Merged", "Frozen"} == set(STRATEGIES)
    assert set(ONLY_ON) <= set(CASES)
    assert set(FAST) <= set(CELLS)


def test_what_cannot_be_merged_is_refused_by_name(fp32, tmp_path):
    """A pair with and without dW, and a merge of what has no dW: its own parameters are nobody's to merge."""
    pair = [BottleneckAdapter(width=8), LoRA(r=2, targets=("v_proj",))]
    bottleneck = fp32.write(BottleneckAdapter(width=8), "language", tmp_path / "bottleneck")
    merged = Merged((str(bottleneck),), "average")
    plans = {
        "BottleneckAdapter and LoRA on language": pair,
        "Merged on language is no change of weights": merged,
    }
    for message, strategy in plans.items():
        folder = fp32.write(strategy, "language", tmp_path / type(strategy).__name__)
        with pytest.raises(UserError, match=message):
            fp32.merged([folder], "language", "ties")
        with pytest.raises(UserError, match=message):
            read_adapters([folder])
