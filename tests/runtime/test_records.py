import gzip
import json
import multiprocessing
from types import SimpleNamespace

import pytest
import torch

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.provenance import semantic_hash
from vlmpeft.runtime.records import read_items, write_atomically, write_items, write_json
from vlmpeft.training.checkpoints import AtomicCheckpointIO
from vlmpeft.training.progress import MetricsCsv
from vlmpeft.training.run import new_run_dir


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a file system of 256 KiB, or skip where that needs privileges."""
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_checkpoint_on_a_full_disk_leaves_the_previous_one(full_disk):
    path, io = full_disk / "checkpoints" / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"weights": torch.ones(8)}, path)
    with pytest.raises(UserError, match=r"could not be saved.*previous one is intact.*--resume"):
        io.save_checkpoint({"weights": torch.ones(1_000_000)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.ones(8))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_record_on_a_full_disk_leaves_the_previous_one(full_disk):
    path = full_disk / "result.json"
    write_json(path, {"old": 1})
    with pytest.raises(UserError, match="could not be written"):
        write_json(path, {"new": "x" * 1_000_000})
    assert json.loads(path.read_text()) == {"old": 1}


def test_an_interrupted_checkpoint_leaves_the_previous_one(tmp_path):
    class Breaks:
        def __reduce__(self):
            raise RuntimeError("killed in the middle")

    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)
    with pytest.raises(UserError):
        io.save_checkpoint({"step": 2, "x": Breaks()}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_items_survive_and_are_byte_stable(tmp_path):
    items = [{"id": "a", "generated": "grün"}, {"id": "b", "scores": {"exact_match": 1.0}}]
    for name in ("one.gz", "two.gz"):
        write_items(tmp_path / name, items)
    assert read_items(tmp_path / "one.gz") == items
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.gz").read_bytes()).count(b"\n") == 2


def test_hash_does_not_depend_on_key_order():
    assert (
        semantic_hash({"a": 1, "b": [2]})
        == semantic_hash({"b": [2], "a": 1})
        != semantic_hash({"a": 2})
    )


def test_a_run_name_is_never_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists and is not overwritten"):
        new_run_dir(str(tmp_path), "mine", "x")
    assert new_run_dir(str(tmp_path), None, "mine") == tmp_path / "mine-2"
    assert new_run_dir(str(tmp_path), None, "other") == tmp_path / "other"


def test_log_is_cut_back_to_the_checkpoint(tmp_path):
    log = MetricsCsv(tmp_path / "metrics.csv")
    for step in range(5):
        log.log_metrics({"loss": step / 3}, step)
    log.cut_back(3)
    log.log_metrics({"loss": 9.0}, 3)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows == [
        "step,name,value",
        "0,loss,0.0",
        f"1,loss,{1 / 3!r}",
        f"2,loss,{2 / 3!r}",
        "3,loss,9.0",
    ]


def test_selected_checkpoint_is_what_the_record_says(tmp_path):
    from vlmpeft.training.checkpoints import RunCheckpoints

    keeper = RunCheckpoints(tmp_path, every=10, select="best", monitor="val/exact_match")
    module = SimpleNamespace(load_state_dict=lambda state: None)
    assert keeper.load_selected(module, 7) == {"by": "last", "step": 7}
    torch.save({"state_dict": {}, "global_step": 5}, tmp_path / "best.ckpt")
    keeper.best_step = 5
    assert keeper.load_selected(module, 7) == {"by": "val/exact_match", "step": 5}


def write_often(path, number):
    for count in range(60):
        write_atomically(path, f"{number} {count}".encode())


def test_processes_that_write_one_file_at_once_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=write_often, args=(tmp_path / "a", number)) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "a").read_text().endswith(" 59")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
