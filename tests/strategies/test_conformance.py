"""Strategies x families x components x widths: a subset in `make test`, the product under `make test-slow`."""

import json

import pytest

from ..conftest import ROOT
from ..families import FAMILIES
from ..families.checks import Subject, draw_pictures
from ..laws import COMPONENTS, KINDS, Bench, run_cell

RECORDS = ROOT / "results/conformance"
FAST = {
    "qwen2_5_vl": ("LoRA", "DoRA", "IA3", "pfeiffer", "PromptTuning", "PrefixTuning", "Full"),
    "gemma3": ("PromptTuning", "PrefixTuning"),
    "blip-2": ("PromptTuning",),
    "mllama": ("LoRA", "PrefixTuning"),
}
# cells that break a law, by what their names begin with; docs/conformance.md has the reasons
KNOWN = {
    # the last Q-Former layer's text half is computed and thrown away: gradients of exact zeros
    "instructblip": tuple(f"{kind} on projector" for kind in KINDS),
    # no text token chooses its vision experts, and its only bias is the router's, which no gradient reaches
    "ernie4_5_vl_moe": ("BitFit on language", "LastLayers on language", "Full on language"),
    # the last of its projector's layers is not read
    "granite4_vision": ("LastLayers on projector",),
    # PEFT's OFT does not reshape what has two dimensions of patches
    **dict.fromkeys(("aya_vision", "cohere2_vision", "lfm2_vl"), ("OFT on projector",)),
    **dict.fromkeys(("got_ocr2", "deepseek_vl_hybrid"), ("OFT on vision",)),
    "kimi_k25": ("OFT on language",),
}
NOT_HERE = (
    "perception_lm",
    "kosmos-2.5",
)  # no batch of two pictures; 4,096 patches a picture, hours
WIDTHS = {
    "fp32": {},
    "nf4": {"vision": "nf4", "projector": "nf4", "language": "nf4"},
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("shown"))


def run(name, kinds, shown, scratch):
    """{strategy: {component: {width: laws that hold, or law -> reason}}} of one family."""
    folder = scratch / "base"
    FAMILIES[name].save(folder)
    cells = {kind: {component: {} for component in COMPONENTS} for kind in kinds}
    for width, bits in WIDTHS.items():
        bench = Bench(Subject(folder, shown, scratch), bits)
        for kind in kinds:
            for component in COMPONENTS:
                laws = run_cell(bench, KINDS[kind], component)
                cells[kind][component][width] = (
                    laws if any(laws.values()) else " ".join(sorted(laws))
                )
    return cells


def broken(cells):
    """Cell -> laws that do not hold."""
    found = {}
    for kind, components in cells.items():
        for component, widths in components.items():
            for width, laws in widths.items():
                if isinstance(laws, str):
                    continue
                reasons = {k: v for k, v in laws.items() if v and k != "refused"}
                if reasons:
                    found[f"{kind} on {component} in {width}"] = reasons
    return found


# PaliGemma's processor gives numpy a tensor
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`:UserWarning"),  # it fits it
]


@pytest.mark.parametrize("name", FAST)
def test_the_laws_hold_on_some_families(name, shown, tmp_path):
    assert broken(run(name, FAST[name], shown, tmp_path)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NOT_HERE])
def test_the_laws_hold_for_every_strategy_on_every_family(name, shown, tmp_path):
    cells = run(name, KINDS, shown, tmp_path)
    RECORDS.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(kind)}: {json.dumps(cells[kind])}" for kind in KINDS]
    (RECORDS / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    known = KNOWN.get(name, ())
    assert {cell for cell in broken(cells) if not cell.startswith(known)} == set(), broken(cells)
