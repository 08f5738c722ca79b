"""What is done on a node of a cluster: one run, in a scratch folder, by a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vlmpeft
from vlmpeft.runtime.atomic_folder import make_scratch
from vlmpeft.study.launchers.parcel import CHECKPOINT, PART_BYTES, pack, unpack
from vlmpeft.study.launchers.subprocesses import command


@dataclass(frozen=True)
class Look:
    """How far a run is.

    Args:
        code: exit code of its process; None while it goes on.
        lines: the last that it printed, of one that has ended.
        checkpoint: time of its last checkpoint in nanoseconds; None without one.
    """

    code: int | None
    lines: list[str]
    checkpoint: int | None


class NodeRun:
    """A run on the machine that this object lives on. Its methods are called from elsewhere, so each of them is short."""

    def __init__(self) -> None:
        self.scratch = make_scratch(Path(tempfile.gettempdir()) / "vlmpeft-run")
        self.parcel = self.scratch / "parcel.tar"

    def node(self) -> str:
        """Which machine this is."""
        import ray

        return f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"

    def receive(self, part: bytes) -> None:
        """Take the next part of the run's beginning."""
        with self.parcel.open("ab") as file:
            file.write(part)

    def start(self, order: Mapping[str, Any], directory: str) -> Look:
        """Start a run, from its beginning if one was received.

        Args:
            order: as plain data; its folders are on the machine that asks.
            directory: what relative paths of its arguments are below, if this machine has it.
        """
        self.folder = self.scratch / "run" / Path(order["folder"]).name
        self.base_folder = self.scratch / "base"
        if self.parcel.exists():
            unpack(self.parcel, self.folder)
        base = str(self.base_folder) if order["base_folder"] else None
        path = self.scratch / "order.json"
        path.write_text(json.dumps({**order, "folder": str(self.folder), "base_folder": base}))
        with (self.scratch / "log").open("w") as log:
            self.process = subprocess.Popen(
                command(path),
                stdin=subprocess.PIPE,  # ends with this process, and the run with it
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                cwd=directory if Path(directory).is_dir() else self.scratch,
                start_new_session=True,
            )
        return self.look()

    def look(self) -> Look:
        """How far the run is."""
        code = self.process.poll()
        log, checkpoint = self.scratch / "log", self.folder / CHECKPOINT
        lines = [] if code is None else log.read_text(errors="replace").strip().splitlines()[-20:]
        return Look(code, lines, checkpoint.stat().st_mtime_ns if checkpoint.exists() else None)

    def stop(self) -> None:
        """Ask the run to save a checkpoint and to end."""
        self.process.terminate()

    def pack(self, what: str) -> int:
        """Pack the folder of the `run` or of the `base`; returns how many bytes are to be fetched."""
        return pack(self.folder if what == "run" else self.base_folder, self.parcel)

    def part(self, offset: int) -> bytes:
        """The bytes of what was packed, from one of them on."""
        with self.parcel.open("rb") as file:
            file.seek(offset)
            return file.read(PART_BYTES)

    def remove(self) -> None:
        """Leave nothing on this machine."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def _environment() -> dict[str, str]:
    """In which the run's process finds the package that this process has."""
    paths = [str(Path(vlmpeft.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
