"""`sweep --launcher ray` on a real cluster of two nodes on this machine: the same runs, also when a node dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmpeft.study.launchers.parcel import CHECKPOINT
from vlmpeft.study.report.records import read_study
from vlmpeft.training.checkpoints import LAST

from ..conftest import ROOT, llava, vlmpeft, write_json

pytestmark = pytest.mark.slow

STUDY = """
title: Two rows, two seeds
base: {tiny: {bits.language: fp32}}
set:
  data: {batch_size: 4, train: train.json, val: val.json}
  trainer: {max_steps: STEPS, max_epochs: -1}
  checkpoint_every: 5
tasks: {mine: {data.image_dir: .}}
seeds: [0, 1]
rows:
  projector: {set: {model.plan.projector: Full}}
  language: {set: {model.plan.language: LoRA}}
"""
MARK = "0,mark,1.0\n"
# in a process of its own: what Ray leaves behind in a process is none of the tests'
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args=small)
nodes = [cluster.add_node(**small)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "add":
        nodes.append(cluster.add_node(**small))
    elif line.strip() == "kill":
        nodes.pop().kill_raylet(check_alive=False)
    print("done", flush=True)
cluster.shutdown()
"""


class LocalCluster:
    """Two nodes with a core each."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = next(line for line in self.process.stdout if re.match(r"[\d.]+:\d+$", line))
        self.options = ["--launcher", "ray", "--address", self.address.strip()]

    def say(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        while self.process.stdout.readline().strip() != "done":
            assert self.process.poll() is None


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    local = LocalCluster()
    yield local
    local.process.stdin.close()
    local.process.wait(60)
    local.process.stdout.close()


@pytest.fixture
def folder(tmp_path, pictures):
    return made(tmp_path, pictures, 8)


def made(folder, pictures, steps):
    """A working directory with data and a study."""
    for name in "abc":
        (folder / f"{name}.png").write_bytes((pictures / f"{name}.png").read_bytes())
    train = [
        llava(f"question {i}?", f"answer {i % 3}", "abc"[i % 3] + ".png", id=f"t{i}")
        for i in range(20)
    ]
    write_json(folder / "train.json", train)
    write_json(folder / "val.json", [llava(f"question {i}?", id=f"v{i}") for i in range(5)])
    (folder / "mine.yaml").write_text(STUDY.replace("STEPS", str(steps)))
    return folder


def started(folder, *args):
    return subprocess.Popen(
        [sys.executable, "-m", "vlmpeft", "sweep", "mine.yaml", *args],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process, *paths, seconds=200):
    end = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def logs(folder):
    """Run -> its log."""
    found = {str(p.parent.relative_to(folder)): p.read_text() for p in folder.rglob("metrics.csv")}
    assert found
    return found


def test_checkpoint_is_where_runs_leave_it():
    assert Path(CHECKPOINT).name == LAST


def test_study_on_two_nodes_equals_the_study_in_this_process(cluster, folder):
    vlmpeft("sweep", "mine.yaml", "--out", "alone", cwd=folder, check=0)
    done = vlmpeft("sweep", "mine.yaml", "--out", "spread", *cluster.options, cwd=folder, check=0)
    assert logs(folder / "spread") == logs(folder / "alone")
    alone, spread = read_study(folder / "alone"), read_study(folder / "spread")
    assert len(spread.runs) == 4 + 1
    for one, other in zip(alone.runs, spread.runs, strict=True):
        assert (one.row, one.seed) == (other.row, other.seed)
        assert one.record["metrics"] == other.record["metrics"]
        assert one.record["config"] == other.record["config"]
        left = {str(p.relative_to(one.folder)) for p in one.folder.rglob("*") if p.is_file()}
        assert left == {
            str(p.relative_to(other.folder)) for p in other.folder.rglob("*") if p.is_file()
        }
    (line,) = [line for line in done.stderr.splitlines() if "made by the cluster" in line]
    counts = [int(n) for n in re.findall(r"(\d+) on \S+ \(\w+\)", line)]
    assert (len(counts), sum(counts)) == (2, 4), line
    assert "raylet" not in done.stdout + done.stderr  # Ray itself says nothing


def test_run_of_a_node_that_dies_goes_on_elsewhere_without_a_gap(cluster, tmp_path, pictures):
    folder = made(tmp_path, pictures, 150)
    expected = folder / "alone"
    vlmpeft("sweep", "mine.yaml", "--out", "alone", "--only", "row=projector", cwd=folder, check=0)
    process = started(folder, "--out", "spread", "--only", "row=projector", *cluster.options)
    runs = [folder / f"spread/runs/tiny/mine/projector/seed{seed}" for seed in (0, 1)]
    wait_for(process, *(run / CHECKPOINT for run in runs))
    cluster.say("kill")
    for (
        run
    ) in runs:  # what is here of the lost run is what goes on: a line of its log travels with it
        with (run / "metrics.csv").open("a") as log:
            log.write(MARK)
    said, _ = process.communicate(timeout=200)
    cluster.say("add")
    assert process.returncode == 0, said
    assert re.search(r"projector/seed\d: node .* was lost .*from its last checkpoint", said), said
    found = logs(folder / "spread")
    assert sum(MARK in log for log in found.values()) == 1
    assert {run: log.replace(MARK, "") for run, log in found.items()} == logs(expected)
    records = [json.loads((run / "result.json").read_text()) for run in runs]
    assert [record["steps"] for record in records] == [150, 150]


def test_signal_brings_the_checkpoints_here_and_the_same_command_goes_on(
    cluster, tmp_path, pictures
):
    folder = made(tmp_path, pictures, 150)
    options = ["--only", "row=projector", *cluster.options]
    vlmpeft("sweep", "mine.yaml", "--out", "alone", "--only", "row=projector", cwd=folder, check=0)
    process = started(folder, "--out", "spread", *options)
    runs = [folder / f"spread/runs/tiny/mine/projector/seed{seed}" for seed in (0, 1)]
    wait_for(process, *(run / CHECKPOINT for run in runs))
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 3, said
    assert "the same command goes on" in said
    assert not any((run / "result.json").exists() for run in runs)
    steps = [
        len(set(re.findall(r"^(\d+),train/loss", (run / "metrics.csv").read_text(), re.MULTILINE)))
        for run in runs
    ]
    assert all(0 < n < 150 for n in steps)
    vlmpeft("sweep", "mine.yaml", "--out", "spread", *options, cwd=folder, check=0)
    assert logs(folder / "spread") == logs(folder / "alone")


def test_failed_run_is_a_record_with_its_error(cluster, folder):
    (folder / "mine.yaml").write_text(
        (folder / "mine.yaml").read_text()
        + "  bad: {set: {model.plan.language: LoRA, data.max_length: 9}}\n"
    )
    done = vlmpeft(
        *("sweep", "mine.yaml", "--out", "some", "--only", "row=language,bad", "--seeds", "0"),
        *cluster.options,
        cwd=folder,
        check=4,
    )
    (failed,) = read_study(folder / "some").failed
    assert "max_length" in failed.record["error"]
    assert "max_length" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cpus_per_run", "9"], "no node of the Ray cluster .* has 9 CPUs"),
        (["--address", "127.0.0.1:1"], "no Ray cluster there"),
    ],
)
def test_cluster_that_cannot_be_used_is_one_line(cluster, folder, options, message):
    done = vlmpeft("sweep", "mine.yaml", *cluster.options, *options, cwd=folder, check=2)
    assert re.search(message, done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr
