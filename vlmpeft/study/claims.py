"""Claim files: any number of processes on one folder, each run made by one of them.

A claim is a file that its owner creates and touches while it works. The file system decides who was first. A claim whose process is
no more, or that nobody touched for long, is taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from vlmpeft.runtime.atomic_folder import is_alive, machine
from vlmpeft.runtime.errors import UserError

BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0  # of a claim on another machine, whose processes cannot be asked


class Claims:
    """The claims of one process.

    Args:
        folder: shared by every process of a study.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether this process may work on `name` inside the block; the claim is given back at its end.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self._path(name)
        token = self._take(path)
        if token is None:
            yield False
            return
        ended = threading.Event()
        beat = threading.Thread(target=_touch_until, args=(path, ended), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            ended.set()
            beat.join()
            if _token_of(path) == token:  # else somebody thought this process dead
                path.unlink(missing_ok=True)

    def is_claimed(self, name: str) -> bool:
        """Whether a living process works on `name`."""
        path = self._path(name)
        return path.exists() and not _is_stale(path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '--')}.json"

    def _take(self, path: Path) -> str | None:
        """Create the claim, or take over a stale one; None if it is somebody's."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (token := _create(path)) or not _is_stale(path):
                return token
            with (self.folder / ".lock").open("w") as lock:  # two that see the same stale claim
                fcntl.flock(lock, fcntl.LOCK_EX)
                if _is_stale(path):
                    path.unlink(missing_ok=True)
                    return _create(path)
            return None
        except OSError as error:
            raise UserError(
                f"claim {path} cannot be written: {error.strerror or error}; give a folder that can: --out"
            ) from error


def _create(path: Path) -> str | None:
    """A new claim's token; None if there is one."""
    token = uuid4().hex
    owner = {"token": token, "machine": machine(), "pid": os.getpid(), "host": platform.node()}
    scratch = path.with_name(f".{token}")
    try:
        scratch.write_text(json.dumps(owner))
        os.link(scratch, path)  # whole or not at all, and only if there is none
    except FileExistsError:
        return None
    finally:
        scratch.unlink(missing_ok=True)
    return token


def _token_of(path: Path) -> str | None:
    try:
        return json.loads(path.read_text())["token"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_stale(path: Path) -> bool:
    """Whether the claim's process is no more, as far as this machine can tell."""
    try:
        owner = json.loads(path.read_text())
        if owner["machine"] == machine():
            return not is_alive(int(owner["pid"]))
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False  # given back meanwhile
    except (OSError, ValueError, KeyError, TypeError):
        return True  # no claim of ours


def _touch_until(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            path.touch(exist_ok=True) if path.exists() else None
