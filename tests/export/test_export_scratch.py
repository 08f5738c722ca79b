"""An export's folder appears whole or not at all, and what a killed one left goes with the next."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from vlmpeft.runtime.atomic_folder import written_whole

from ..exports import adapter, export, line, questions, saved  # noqa: F401  fixtures


def killed(out):
    """The scratch folder that a killed export leaves, and its process id."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom vlmpeft.runtime.atomic_folder import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as scratch:\n"
        "    (scratch / 'config.json').write_text('{}')\n    os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(out)])
    assert process.wait() == -signal.SIGKILL
    (left,) = [path for path in out.parent.iterdir() if (path / "config.json").is_file()]
    return left, process.pid


def test_a_killed_export_leaves_nothing_under_the_name_and_the_next_removes_what_it_left(tmp_path):
    out = tmp_path / "out"
    left, pid = killed(out)
    assert not out.exists()
    assert left.name.startswith(".out-")
    # of save_adapter, within an export
    (tmp_path / f".{left.name}-{left.name.split('-')[1]}-{pid}-cccccccc").mkdir()
    kept = [
        left.name.replace(f"-{pid}-", f"-{os.getpid()}-"),  # of a process that lives
        left.name.replace(f"-{pid}-", "-1-"),  # of another user's, often
        left.name.replace(".out-", ".output-"),  # of another folder
        left.name.replace(left.name.split("-")[1], "0" * 8),  # of another machine
        left.name.removeprefix("."),
        f"{left.name}.bak",
        f"{left.name}x",
        f".out-{pid}",
        ".out-mine",
        ".out",
    ]
    assert left.name not in kept
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f"{left.name[:-8]}aaaaaaaa").write_text("a file")
    (tmp_path / f"{left.name[:-8]}bbbbbbbb").symlink_to(tmp_path / ".out-mine")
    with written_whole(out) as scratch:
        names = {path.name for path in tmp_path.iterdir()} - {scratch.name}
    files = {f"{left.name[:-8]}aaaaaaaa", f"{left.name[:-8]}bbbbbbbb"}
    assert names == {*kept} | files
    assert out.is_dir()


def test_an_interrupted_export_leaves_nothing(tmp_path):
    def interrupted():
        with written_whole(tmp_path / "out") as scratch:
            (scratch / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_not_touched(tmp_path, adapter, capsys):  # noqa: F811
    folder = adapter("lora")
    (tmp_path / "out").mkdir()
    assert export(folder, "vllm", tmp_path / "out") == 2
    assert "exists already; nothing was written" in line(capsys)
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_that_takes_no_more_is_one_line_and_nothing_is_left(
    tmp_path,
    adapter,  # noqa: F811
    questions,  # noqa: F811
    capsys,
):
    folder = adapter("recipe")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        assert export(folder, "merged", tmp_path / "out", *questions) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written" in line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
