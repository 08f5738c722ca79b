"""What each architecture family can do here: found by doing it, written down by `make test-slow`."""

import json

import pytest

from .conftest import ROOT
from .families import FAMILIES
from .families.checks import Subject, draw_pictures, reasons

FAST = ("qwen2_5_vl",)  # in `make test`; the others under `make test-slow`


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("shown"))


# PaliGemma's processor gives numpy a tensor
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAMILIES],
)
def test_a_family_can_do_what_it_is_said_to_and_no_less(name, shown, tmp_path):
    folder, scratch = tmp_path / "base", tmp_path / "scratch"
    scratch.mkdir()
    FAMILIES[name].save(folder)
    found = reasons(Subject(folder, shown, scratch))
    missing = {check: reason for check, reason in found.items() if reason}
    record = ROOT / "results/architectures" / f"{name}.json"
    if name not in FAST:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found, indent=1) + "\n")
    assert missing.keys() == FAMILIES[name].cannot, missing
