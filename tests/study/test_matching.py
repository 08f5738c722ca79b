"""Ranks, widths and tokens that are chosen are those of the papers' arithmetic, on LLaVA-1.5-7B and on a slice of it."""

import contextlib
import json
from dataclasses import replace

import pytest
import torch

from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.cli.run_resolver import RunResolver
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.registry import STRATEGIES, resolve
from vlmpeft.strategies import (
    AdaLoRA,
    BottleneckAdapter,
    DoRA,
    Full,
    LoRA,
    PrefixTuning,
    PromptTuning,
)
from vlmpeft.strategies.plan import Plan
from vlmpeft.study.cells import IllegalCell
from vlmpeft.study.knobs import knob_of
from vlmpeft.study.matching import closest, match_plan
from vlmpeft.study.meta_base import MetaBase
from vlmpeft.study.resolving import resolve_study
from vlmpeft.study.spec import Match

from ..strategies.test_plan import llava_7b_config
from .study_files import study

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CPU = torch.device("cpu")
L = 2  # layers of the slice, in each tower; the widths are LLaVA-1.5-7B's
N = 2**20  # LoRA r=16 on q, k, v, o of the slice's language model


def _meta(folder, layers=None):
    config = llava_7b_config()
    if layers:
        config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = layers
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return MetaBase(BaseSpec(str(folder)), CPU)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """The slice, of which there is nothing but a config.json."""
    return _meta(tmp_path_factory.mktemp("slice"), L)


@pytest.fixture(scope="module")
def tiny():
    return MetaBase(BaseSpec(bits=Bits(language="fp32")), CPU)


# strategy, its count by the closed form of its paper, of L layers of width d = 4096
LANGUAGE = [
    (LoRA(r=4, alpha=12, targets=ATTENTION), "r", lambda r, L: L * 4 * r * 2 * 4096),
    (LoRA(targets=("q_proj", "v_proj")), "r", lambda r, L: L * 2 * r * 2 * 4096),
    (BottleneckAdapter(reduction=8), "width", lambda b, L: L * (2 * 4096 * b + b + 4096)),
    (PrefixTuning(), "n", lambda n, L: n * L * 2 * 4096),
    (PromptTuning(), "n", lambda n, _: n * 4096),
]


@pytest.mark.parametrize(
    ("strategy", "name", "form"), LANGUAGE, ids=["all", "qv", "bottleneck", "prefix", "prompt"]
)
def test_the_knob_is_the_nearest_of_the_closed_form(llava, strategy, name, form):
    _check_nearest(llava, N, strategy, name, lambda k: form(k, L))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "name", "form"), LANGUAGE, ids=["all", "qv", "bottleneck", "prefix", "prompt"]
)
def test_the_knob_is_the_nearest_of_the_closed_form_on_all_of_llava(tmp_path, strategy, name, form):
    _check_nearest(_meta(tmp_path), 16_777_216, strategy, name, lambda k: form(k, 32))


def _check_nearest(base, total, strategy, name, form):
    found = match_plan(Plan(language=strategy), Match(total), base.count)
    best = min(range(1, 10_000), key=lambda k: abs(form(k) - total))
    assert found.knobs == {f"language.{name}": best}
    assert found.trainable == form(best)
    assert abs(found.trainable / total - 1) <= 0.02


def test_alpha_keeps_its_ratio_and_other_settings_stay(llava):
    before = LoRA(r=4, alpha=12, targets=ATTENTION, dropout=0.3, learning_rate=7.0)
    (lora,) = match_plan(Plan(language=before), Match(N), llava.count).plan.of("language")
    assert lora == replace(before, r=16, alpha=48)
    auto = knob_of(LoRA()).turned(LoRA(), 5)
    assert (auto.alpha, auto.scaled_alpha) == ("auto", 10)
    ada = AdaLoRA(target_r=8, init_r=12, alpha=16)
    assert knob_of(ada).turned(ada, 6) == replace(ada, init_r=6, target_r=4, alpha=8)


def test_components_share_equally_and_the_finest_knob_balances(llava):
    plan = Plan(vision=LoRA(targets=CLIP_ATTENTION), language=LoRA(targets=ATTENTION))
    total = 1_400_000
    found = match_plan(plan, Match(total), llava.count)
    language, vision = L * 4 * 2 * 4096, L * 4 * 2 * 1024  # parameters a rank
    r = round(total / 2 / language)
    rest = round((total - r * language) / vision)
    assert found.knobs == {"vision.r": rest, "language.r": r} == {"vision.r": 41, "language.r": 11}
    assert found.trainable == r * language + rest * vision


def test_what_has_no_knob_keeps_its_size_and_the_rest_is_matched(llava):
    plan = Plan(projector=Full(), language=LoRA(targets=ATTENTION))
    found = match_plan(plan, Match(20_979_712 + N), llava.count)
    assert (found.knobs, found.trainable) == ({"language.r": 16}, 20_979_712 + N)


def test_several_strategies_of_a_component_share_its_part(llava):
    plan = Plan(language=[LoRA(targets=ATTENTION), PromptTuning()])
    found = match_plan(plan, Match(N), llava.count)
    assert found.knobs == {"language.LoRA.r": 8, "language.PromptTuning.n": N // 2 // 4096}
    both = Plan(vision=PromptTuning(), language=plan.language)  # half of it, and two quarters
    found = match_plan(both, Match(N), llava.count)
    assert found.knobs == {
        "vision.n": N // 2 // 1024,
        "language.LoRA.r": 4,
        "language.PromptTuning.n": N // 4 // 4096,
    }


@pytest.mark.parametrize(
    ("plan", "total", "message"),
    [
        # r 65,536 and 32,768 magnitudes: 15 and 16 ranks are as far off
        (Plan(language=DoRA(targets=ATTENTION)), N, "closest is 1,0[0-9,]+ .*3.1 % off"),
        # rank 1024 on 1024 x 4096 and on 4096 x 4096
        (Plan(projector=LoRA()), 2**24, r"13,631,488 \(projector.r=1024\).* r=1025 is more than"),
        (Plan(language=LoRA(targets=ATTENTION)), 1000, r"closest is 65,536 \(language.r=1\)"),
        (Plan(projector=Full(), language=LoRA(targets=ATTENTION)), N, "closest is 21,045,248"),
        (Plan(projector=PromptTuning()), N, "PromptTuning on projector"),
    ],
)
def test_what_cannot_be_matched_is_illegal_and_says_the_closest(llava, plan, total, message):
    with pytest.raises(IllegalCell, match=message):
        match_plan(plan, Match(total), llava.count)


def test_a_row_without_a_knob_has_to_say_so(tmp_path):
    rows = {"full": {"set": {"model.plan.vision": "Full"}}}
    with pytest.raises(UserError, match=r"row full .* give the row match: false"):
        resolve_study(study(tmp_path, rows=rows, match_parameters=9000), RunResolver())
    rows["full"]["match"] = False
    (cell,) = resolve_study(study(tmp_path, rows=rows, match_parameters=9000), RunResolver()).cells
    assert (cell.matched, cell.size.trainable) == (None, 355_776)


def test_a_matched_cell_is_a_command_with_the_matched_plan(tmp_path):
    rows = {
        "lora": {"set": {"model.plan.language": "LoRA", "model.plan.language.init_args.alpha": 8}},
        "wide": {
            "set": {
                "model.plan.vision": "BottleneckAdapter",
                "model.plan.vision.init_args.reduction": 4,
            }
        },
        "list": {"set": {"model.plan.vision": ["LoRA", "BottleneckAdapter"]}},
    }
    resolver = RunResolver()
    found = resolve_study(study(tmp_path, rows=rows, match_parameters=39_424), resolver)
    for one in found.cells:
        assert resolver(one.cell.args).plan == one.matched.plan == one.resolved.plan
        assert one.size.trainable == one.matched.trainable == pytest.approx(39_424, rel=0.02)


@pytest.mark.parametrize("target", [1, 7, 99, 100, 101, 5000])
@pytest.mark.parametrize(
    "size",
    [
        lambda k: 30 * k + 9,
        lambda k: k if k < 50 else 3 * k,
        lambda k: 16 * (k // 3) + 1,
        lambda k: 64,
    ],
)
def test_the_closest_is_that_of_a_full_search(size, target):
    best = min(abs(size(k) - target) for k in range(1, 6000))
    assert abs(size(closest(size, target)) - target) == best


def test_the_closest_stays_below_what_is_too_large():
    def size(k):
        if k > 37:
            raise UserError("too large")
        return 10 * k

    assert closest(size, 1000) == 37


@pytest.mark.parametrize("name", sorted({*STRATEGIES} - {"Frozen", "Dense", "Merged"}))
def test_trying_a_plan_leaves_no_trace(tiny, name):
    tiny.model.requires_grad_(False).eval()
    before, tried = _state(tiny.model), 0
    for component in ("vision", "projector", "language"):
        with contextlib.suppress(IllegalCell):
            tried += tiny.size(Plan(**{component: resolve(name, STRATEGIES)()})).trainable > 0
        assert _state(tiny.model) == before
    assert tried


def _state(model):
    parameters = [(n, id(p), p.requires_grad, p.dtype) for n, p in model.named_parameters()]
    modules = [
        (n, id(m), len(m._forward_hooks), len(m._forward_pre_hooks))
        for n, m in model.named_modules()
    ]
    return parameters, modules, sorted(vars(model)), repr(model.config)
