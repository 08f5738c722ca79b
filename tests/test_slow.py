"""Minutes-long checks: `make test-slow`."""

import subprocess
import sys

import pytest

from .conftest import ROOT

TINY = ROOT / "vlmpeft/base/tiny"


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
def test_the_embedded_base_can_be_made_again(tmp_path):
    command = [sys.executable, "scripts/train_tiny.py", "--out", str(tmp_path / "tiny")]
    command += ["--eyes_steps=2", "--share=0.001", "--scenes=64", "--score_count=4"]
    subprocess.run(command, cwd=ROOT, check=True)
    made = {path.name for path in (tmp_path / "tiny").iterdir()}
    shipped = {path.name for path in TINY.iterdir()}
    assert made == shipped
    tokenizers = [path / "tokenizer.json" for path in (tmp_path / "tiny", TINY)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()
