"""What each architecture family can do here: found by doing it, written down by `make test-slow`."""

import json

import pytest

from ..conftest import ROOT
from ..families import FAMILIES
from ..families.checks import Subject, draw_pictures, reasons

FAST = ("qwen2_5_vl", "llava_next", "idefics3", "gemma3", "mllama")  # in `make test`
# PaliGemma's processor gives numpy a tensor
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("shown"))


def found_out(name, shown, tmp_path):
    """Check -> why it does not pass."""
    folder, scratch = tmp_path / "base", tmp_path / "scratch"
    scratch.mkdir()
    FAMILIES[name].save(folder)
    return reasons(Subject(folder, shown, scratch))


def failed(found):
    return {check for check, reason in found.items() if reason}


@pytest.mark.parametrize("name", FAST)
def test_some_families_can_do_what_they_are_said_to(name, shown, tmp_path):
    found = found_out(name, shown, tmp_path)
    assert failed(found) == FAMILIES[name].cannot, found


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_do_what_it_is_said_to_and_no_less(name, shown, tmp_path):
    found = found_out(name, shown, tmp_path)
    record = ROOT / "results/architectures" / f"{name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(found, indent=1) + "\n")
    assert failed(found) == FAMILIES[name].cannot, found
