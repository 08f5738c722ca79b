"""A run folder that travels: what comes out is what went in, and a checkpoint never has a step that the log lacks."""

import io
import tarfile
import threading

import pytest

from vlmpeft.runtime.errors import UserError
from vlmpeft.study.launchers import parcel
from vlmpeft.study.launchers.parcel import CHECKPOINT, pack, parts, unpack
from vlmpeft.study.launchers.ray_cluster import _room


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def made(folder, **files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_what_is_unpacked_is_what_was_packed_and_what_was_there_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(parcel, "PART_BYTES", 1000)
    files = {"metrics.csv": b"step\n", "adapter/a.bin": bytes(5000), CHECKPOINT: b"c", "empty": b""}
    here = made(tmp_path / "here", **files, **{"checkpoints/last.ckpt.tmp": b"half"})
    there = made(tmp_path / "there", **{"metrics.csv": b"old", "stale.json": b"{}"})
    size = pack(here, tmp_path / "p.tar")
    pieces = list(parts(tmp_path / "p.tar"))
    assert len(pieces) > 5
    assert sum(map(len, pieces)) == size
    (tmp_path / "q.tar").write_bytes(b"".join(pieces))
    unpack(tmp_path / "q.tar", there)
    assert contents(there) == files
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".there")] == []


def test_log_has_every_step_of_the_checkpoint_while_a_run_goes_on(tmp_path):
    """A thread logs a step, then saves it, as a run does; each parcel of it is one that can be resumed."""
    run = made(tmp_path / "run", **{"metrics.csv": b"", CHECKPOINT: b"0"})
    for number in range(40):
        made(run, **{f"checkpoints/other-{number}": bytes(20_000)})
    ended = threading.Event()

    def go_on():
        step = 0
        while not ended.is_set():
            step += 1
            with (run / "metrics.csv").open("a") as log:
                log.write(f"{step}\n")
            scratch = run / f"{CHECKPOINT}.tmp"
            scratch.write_text(str(step))
            scratch.replace(run / CHECKPOINT)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        seen = []
        for _ in range(12):
            pack(run, tmp_path / "p.tar")
            unpack(tmp_path / "p.tar", tmp_path / "there")
            lines = (tmp_path / "there/metrics.csv").read_text().split()
            seen.append((int((tmp_path / "there" / CHECKPOINT).read_text()), len(lines)))
    finally:
        ended.set()
        thread.join()
    assert all(checkpoint <= logged for checkpoint, logged in seen)
    assert seen[-1][0] > seen[0][0]


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_nothing_is_written_outside_of_the_folder(tmp_path, name):
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    there = made(tmp_path / "there", kept=b"kept")
    with pytest.raises(UserError, match="no file below its folder"):
        unpack(tmp_path / "p.tar", there)
    assert contents(there) == {"kept": b"kept"}


def test_a_link_and_half_a_parcel_are_refused_and_leave_the_folder_as_it_was(tmp_path):
    there = made(tmp_path / "there", kept=b"kept")
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    pack(made(tmp_path / "here", big=bytes(50_000)), tmp_path / "p.tar")
    (tmp_path / "half.tar").write_bytes((tmp_path / "p.tar").read_bytes()[:30_000])
    for name in ("link.tar", "half.tar"):
        with pytest.raises(UserError):
            unpack(tmp_path / name, there)
    assert contents(there) == {"kept": b"kept"}


def test_room_of_a_node_is_what_its_scarcer_kind_allows():
    node = {"CPU": 16.0, "GPU": 4.0}
    assert _room(node, 1, 1) == 4
    assert _room(node, 8, 1) == 2
    assert _room(node, 1, 0.5) == 8
    assert _room(node, 0.1, 0) == 160
    assert _room({"CPU": 16.0}, 1, 1) == 0
