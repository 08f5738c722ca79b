"""Adapters to be exported, and what was exported of them: each made once a session."""

import gc
import json
import shutil
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from vlmpeft.adapters.loading import load_adapter
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.decoding import Limits
from vlmpeft.evaluation.equivalence import Trial, encode_items, read_items
from vlmpeft.strategies import (
    BitFit,
    BottleneckAdapter,
    DoRA,
    Full,
    LayerNormTuning,
    LoRA,
    PromptTuning,
)
from vlmpeft.strategies.plan import Plan, attach

from .conftest import call, llava, randomize, write_json

FP32 = BaseSpec(bits=Bits(language="fp32"))
NF4 = BaseSpec()
PLANS = {
    "recipe": (Plan(projector=Full(), language=LoRA(r=4)), FP32),
    "several": (
        Plan(
            vision=BitFit(),
            projector=DoRA(r=2),
            language=[LayerNormTuning(), LoRA(r=3, rslora=True, targets=("q_proj",))],
        ),
        FP32,
    ),
    "nf4": (Plan(projector=Full(), language=LoRA(r=4)), NF4),
    "lora": (Plan(vision=LoRA(r=4, alpha=4), projector=LoRA(r=2), language=LoRA(r=12)), FP32),
    "mixed": (Plan(projector=LoRA(r=2, rslora=True), language=LoRA(r=4)), FP32),
    "dora": (Plan(language=DoRA(r=2)), FP32),
    "prompt": (Plan(vision=BottleneckAdapter(), language=PromptTuning(n=2)), FP32),
    "projector": (Plan(projector=Full()), FP32),
    "bf16 tower": (Plan(language=LoRA(r=2)), BaseSpec(bits=Bits(vision="bf16", language="fp32"))),
}
_MADE = {}  # a fixture that several modules import is one of each, so its scope does not reach over them

base = cache(load_base)  # what is attached to it has to be detached again


def _once(key, make):
    if key not in _MADE:
        _MADE[key] = make()
    return _MADE[key]


def save(folder, plan, spec, scale=0.05):
    """A randomized adapter."""
    model, processor, components = base(spec)
    attached = attach(plan, model, components)
    try:
        randomize(attached, scale)
        decoding = {"max_new_tokens": 5, "end_ids": [1]}
        return save_adapter(
            folder, attached, processor=processor, base=origin(spec), decoding=decoding
        )
    finally:
        attached.detach()


@contextmanager
def adapted(folder, spec=FP32):
    """(model with the adapter on it, attached plan)."""
    model, _, components = base(spec)
    plan = load_adapter(folder, model, components)
    try:
        yield model, plan
    finally:
        plan.detach()


@pytest.fixture(scope="session")
def questions(pictures):
    """Options: samples about the pictures."""
    records = [llava(image=f"{name}.png", answer=f"gear {name}") for name in "abc"]
    path = write_json(pictures / "questions.json", records)
    return ["--data", path, "--image_dir", str(pictures), "--samples", "2"]


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Name in PLANS -> its adapter, not to be changed."""

    def make(name):
        return _once(name, lambda: save(tmp_path_factory.mktemp(name) / "adapter", *PLANS[name]))

    return make


@pytest.fixture
def adapter(saved, tmp_path):
    """Name in PLANS -> a copy of that adapter."""
    return lambda name: Path(shutil.copytree(saved(name), tmp_path / "adapter"))


@pytest.fixture(scope="session")
def exported(saved, questions, tmp_path_factory):
    """(Name in PLANS, target, options) -> the folder that was written of it, not to be changed."""

    def make(name, to, *args):
        def write():
            out = tmp_path_factory.mktemp("exported") / "out"
            assert export(saved(name), to, out, *questions, *args) == 0
            return out

        return _once((name, to, args), write)

    return make


def export(folder, to, out, *args):
    """The exit code; what was there before is out of the garbage collector's sight, which an export calls between models."""
    gc.freeze()
    try:
        return call("export", "--adapter", folder, "--to", to, "--out", out, *args)
    finally:
        gc.unfreeze()


def line(capsys):
    """The one line that a refused export says."""
    (found,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("vlmpeft:")]
    return found


def trial_of(questions, pictures, processor, number=3):
    items = read_items(questions[1], str(pictures), number)
    return Trial(encode_items(items, Encoder(processor)), processor.tokenizer, Limits(5, (1,), 0))


def report_of(out):
    return json.loads((out / "export.json").read_text())
