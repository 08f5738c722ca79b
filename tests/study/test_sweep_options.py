"""Options of `sweep` that cannot be, or that have no effect: one line each, before anything is resolved."""

import importlib.util
import subprocess
import sys

import pytest

from vlmpeft.study.launchers.ray_connection import _check_reachable, _place

from ..conftest import ROOT, call
from .study_files import study


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cpus_per_run", "2"], "option of --launcher ray"),
        (["--address", "auto", "--launcher", "subprocess"], "option of --launcher ray"),
        (["--launcher", "ray", "--gpus_per_run=-1"], "at least 0"),
        (["--jobs", "0"], "above 0"),
        (["--budget", "2"], "90s, 30m or 2h"),
        (["--budget", "2h", "--launcher", "ray"], "times its steps on this machine"),
        (["--budget", "2h", "--dry_run=true"], "leave one out"),
        (["--budget", "2h", "--shard", "1/2"], "leave one out"),
    ],
)
def test_option_without_effect_is_an_error(tmp_path, capsys, options, message):
    study(tmp_path)
    assert call("sweep", tmp_path / "s.yaml", "--out", tmp_path / "out", *options) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_absent_ray_is_one_line_with_what_to_install(tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ray" else found(name, *a)
    )
    study(tmp_path)
    assert call("sweep", tmp_path / "s.yaml", "--out", tmp_path / "out", "--launcher", "ray") == 2
    assert "pip install 'vlmpeft[cluster]'" in capsys.readouterr().err


def test_nothing_of_ray_or_torch_is_imported_with_the_launcher():
    code = "import sys, vlmpeft.study.launchers.ray_cluster; print([n for n in ('ray', 'torch') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_address_that_nobody_listens_at_is_told_at_once(monkeypatch):
    with pytest.raises(OSError, match="refused"):
        _check_reachable("127.0.0.1:1")
    for other in ("auto", "local"):
        _check_reachable(other)
    monkeypatch.setenv("RAY_ADDRESS", "ray://host:10001")
    assert (_place("auto"), _place("10.0.0.1:6379")) == ("ray://host:10001", "10.0.0.1:6379")
