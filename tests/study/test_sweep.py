"""`sweep` as a user runs it: several processes on one folder, signals, kill -9."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from vlmpeft.runtime.records import read_json_or_none, read_record
from vlmpeft.study.report.records import read_study

from ..conftest import ROOT, vlmpeft

pytestmark = pytest.mark.slow

STUDY = """
title: Two rows, two seeds
base: {tiny: {bits.language: fp32}}
set: {data.batch_size: 4, data.train: train.json, data.val: val.json, trainer.max_steps: STEPS, checkpoint_every: 5}
tasks: {mine: {data.image_dir: .}}
seeds: [0, 1]
rows:
  projector: {set: {model.plan.projector: Full}}
  language: {set: {model.plan.language: LoRA}}
search: {learning_rate: [1e-3, 3e-3], steps: 2}
"""


@pytest.fixture
def folder(tmp_path, pictures):
    """A working directory with data and a study of 60 steps a run."""
    from ..conftest import llava, write_json

    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes((pictures / f"{name}.png").read_bytes())
    records = [
        llava(f"question {i}?", f"answer {i % 3}", "abc"[i % 3] + ".png", id=f"t{i}")
        for i in range(20)
    ]
    write_json(tmp_path / "train.json", records)
    write_json(
        tmp_path / "val.json", [llava(f"question {i}?", "answer 1", id=f"v{i}") for i in range(5)]
    )
    (tmp_path / "mine.yaml").write_text(STUDY.replace("STEPS", "60"))
    return tmp_path


def started(folder, *args):
    return subprocess.Popen(
        [sys.executable, "-m", "vlmpeft", "sweep", "mine.yaml", *args],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path, process, seconds=200):
    end = time.monotonic() + seconds
    while not list(path.parent.glob(path.name)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def losses(folder):
    """Run -> its logged losses."""
    found = {}
    for path in sorted(folder.rglob("metrics.csv")):
        rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
        found[str(path.parent.relative_to(folder))] = [
            v for _, name, v in rows if name == "train/loss"
        ]
    return found


@pytest.fixture(scope="module")
def undisturbed():
    return {}


def reference(folder, undisturbed):
    """The losses of the study in one process that nobody disturbs, made once."""
    if not undisturbed:
        vlmpeft("sweep", "mine.yaml", "--out", "alone", cwd=folder, check=0)
        undisturbed |= losses(folder / "alone")
    return undisturbed


@pytest.mark.parametrize("how", [["--jobs", "2"], ["--launcher", "subprocess"]])
def test_study_is_the_same_however_it_is_made(folder, undisturbed, how):
    expected = reference(folder, undisturbed)
    vlmpeft("sweep", "mine.yaml", "--out", "other", *how, cwd=folder, check=0)
    assert losses(folder / "other") == expected
    assert len(read_study(folder / "other").runs) == 4 + 1


def test_two_terminals_share_a_study_and_make_each_run_once(folder, undisturbed):
    expected = reference(folder, undisturbed)
    processes = [started(folder, "--out", "shared") for _ in range(2)]
    said = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert losses(folder / "shared") == expected
    assert all(
        len(values) == len(expected[name]) for name, values in losses(folder / "shared").items()
    )
    assert max(Counter(said[0].split()).values()) > 0
    assert list((folder / "shared/claims").glob("*.json")) == []


@pytest.mark.parametrize("how", [[], ["--jobs", "2"], ["--launcher", "subprocess"]])
def test_killed_study_goes_on_where_it_was(folder, undisturbed, how):
    expected = reference(folder, undisturbed)
    process = started(folder, "--out", "killed", *how)
    wait_for(folder / "killed/runs/tiny/mine/projector/seed0/checkpoints/last.ckpt", process)
    kill_all(process)
    done = {p: p.stat().st_mtime_ns for p in (folder / "killed").rglob("result.json")}
    vlmpeft("sweep", "mine.yaml", "--out", "killed", *how, cwd=folder, check=0)
    assert losses(folder / "killed") == expected
    assert all(path.stat().st_mtime_ns == at for path, at in done.items())


def kill_all(process):
    """SIGKILL to a process and everything that it started, and to nothing else."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("how", [[], ["--jobs", "2"], ["--launcher", "subprocess"]])
def test_signal_saves_and_ends_with_3_and_the_same_command_goes_on(
    folder, undisturbed, how, number
):
    expected = reference(folder, undisturbed)
    process = started(folder, "--out", "stopped", *how)
    log = folder / "stopped/runs/tiny/mine/projector/seed0/metrics.csv"
    wait_for(log, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3, said
    assert "the same command goes on" in said
    assert not (log.parent / "result.json").exists()
    assert (log.parent / "checkpoints/last.ckpt").is_file()
    vlmpeft("sweep", "mine.yaml", "--out", "stopped", *how, cwd=folder, check=0)
    assert losses(folder / "stopped") == expected


def test_shards_make_a_study_together(folder, undisturbed):
    expected = reference(folder, undisturbed)
    vlmpeft("sweep", "mine.yaml", "--out", "parts", "--shard", "1/2", cwd=folder, check=0)
    assert {run.row for run in read_study(folder / "parts").runs} == {"projector", "base"}
    vlmpeft("sweep", "mine.yaml", "--out", "parts", "--shard", "2/2", cwd=folder, check=0)
    assert losses(folder / "parts") == expected


def test_failed_run_is_told_with_exit_code_4_and_the_others_are_made(folder):
    text = (
        (folder / "mine.yaml")
        .read_text()
        .replace("search: {learning_rate: [1e-3, 3e-3], steps: 2}", "")
    )
    text = (
        text.replace("STEPS", "4")
        + "  bad: {set: {model.plan.language: LoRA, data.max_length: 9}}\n"
    )
    (folder / "mine.yaml").write_text(text)
    done = vlmpeft("sweep", "mine.yaml", "--out", "some", cwd=folder, check=4)
    assert "bad" in done.stderr
    assert "max_length" in done.stderr
    study = read_study(folder / "some")
    assert (len(study.runs), len(study.failed)) == (5, 2)
    assert "max_length" in read_record(study.failed[0].folder)["error"]


def halved(folder):
    """Run of the search -> how many optimizer steps its record says."""
    paths = (folder / "search").rglob("result.json")
    return {str(p.parent.relative_to(folder)): read_record(p.parent)["steps"] for p in paths}


def test_budget_runs_the_search_alone_and_several_processes_share_it(folder):
    path = folder / "mine.yaml"
    path.write_text(path.read_text().replace("max_steps: 60", "max_steps: 2"))
    done = vlmpeft("sweep", "mine.yaml", "--out", "some", "--budget", "1h", cwd=folder, check=0)
    assert sorted(halved(folder / "some").values()) == [1, 1, 1, 1, 2, 2]  # 4 arms, then 2
    assert not (folder / "some/runs").exists()
    assert "no table of results" in done.stdout
    before = {p: p.stat().st_mtime_ns for p in (folder / "some").rglob("result.json")}
    vlmpeft("sweep", "mine.yaml", "--out", "some", "--budget", "1h", cwd=folder, check=0)
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "some").rglob("result.json")}
    vlmpeft(
        *("sweep", "mine.yaml", "--out", "two", "--budget", "1h", "--jobs", "2"),
        cwd=folder,
        check=0,
    )
    assert halved(folder / "two") == halved(folder / "some")
    files = [(folder / name / "halving.md").read_text() for name in ("some", "two")]
    assert files[0].replace("some", "two") == files[1]


def test_budget_that_is_spent_ends_in_time_and_ranks_what_is_over(folder):
    path = folder / "mine.yaml"
    path.write_text(path.read_text().replace("max_steps: 60", "max_steps: 2"))
    vlmpeft("sweep", "mine.yaml", "--out", "some", "--budget", "1h", cwd=folder, check=0)
    agreed = folder / "some/halving.json"
    content = agreed.read_text().replace('"budget_seconds": 3600.0', '"budget_seconds": 30.0')
    agreed.write_text(content.replace('"first_steps": 1,', '"first_steps": 10000,'))
    began = time.monotonic()
    vlmpeft("sweep", "mine.yaml", "--out", "some", "--budget", "30s", cwd=folder, check=0)
    assert time.monotonic() - began < 60
    assert read_json_or_none(agreed)["status"] == "budget spent"
    assert len(halved(folder / "some")) == 6  # no run of 10,000 steps is over
    vlmpeft("sweep", "mine.yaml", "--out", "new", "--budget", "1s", cwd=folder, check=2)
