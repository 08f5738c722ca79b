"""Minutes-long checks: `make test-slow`."""

import json
import subprocess
import sys

import pytest

from .conftest import ROOT


@pytest.mark.slow
def test_the_recipe_takes_format_from_below_10_to_at_least_90_percent(tmp_path):
    command = [sys.executable, "benchmarks/fit.py", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-500:]


@pytest.mark.slow
def test_a_training_step_equals_the_common_recipe_s(tmp_path):
    command = [sys.executable, "benchmarks/step.py", "--output", str(tmp_path / "step.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-500:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "least"),
    [("name", 0.95), ("colour", 0.95), ("count", 0.95), ("yes_no", 0.9), ("describe", 0.85)],
)
def test_the_embedded_base_reaches_its_target(kind, least):
    scores = json.loads((ROOT / "vlmpeft/assets/tiny/scores.json").read_text())
    assert scores[kind] >= least
