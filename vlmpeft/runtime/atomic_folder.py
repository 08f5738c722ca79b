"""A folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from vlmpeft.runtime.errors import UserError


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out` that becomes it at the end; after an error there is neither.

    A kill leaves the scratch folder, under a hidden name with the process id in it; the next call for the same `out` removes it.

    Raises:
        UserError: `out` exists, or cannot be written.
    """
    refuse_existing(out)
    try:
        scratch = make_scratch(out)
    except OSError as error:
        raise UserError(f"folder {out} cannot be written: {error.strerror or error}") from error
    try:
        yield scratch
        _open_to_readers(scratch)
        refuse_existing(
            out
        )  # made by somebody else meanwhile: a rename would replace an empty folder
        scratch.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"folder {out} could not be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def replaced_whole(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its place at the end; after an error `out` is as it was.

    A kill leaves the old folder, the new one or, for the moment between two renames, neither; never a part of one.

    Raises:
        OSError: it cannot be written.
    """
    scratch = make_scratch(out)
    aside = make_scratch(out)
    try:
        yield scratch
        _open_to_readers(scratch)
        with suppress(FileNotFoundError):
            out.rename(aside / "old")
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def make_scratch(out: Path) -> Path:
    """A new folder beside `out`; what killed processes left of such folders is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out)
    return Path(tempfile.mkdtemp(prefix=f"{_stem(out)}{os.getpid()}-", dir=out.parent))


def refuse_existing(out: Path) -> None:
    """Never write over anything.

    Raises:
        UserError: it is there.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"folder {out} exists already; nothing was written. Give another folder")


def remove_stale(out: Path) -> None:
    """Remove scratch folders of `out` whose process, on this machine, is no more."""
    process = r"([1-9][0-9]{0,8})-[a-z0-9_]{8}"  # as mkdtemp ends a name
    inner = rf"-{machine()}-{process}"  # of an adapter saved to a scratch folder, as exports do
    ours = re.compile(rf"\.?{re.escape(_stem(out))}{process}({inner})?")
    for path in out.parent.iterdir():
        found = ours.fullmatch(path.name)
        if found and path.is_dir() and not path.is_symlink() and not is_alive(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _stem(out: Path) -> str:
    """How the names of `out`'s scratch folders begin, up to the process id."""
    return f".{out.name}-{machine()}-"


def machine() -> str:
    """Where process ids mean the same: a folder may be shared with other hosts, and with containers of this one."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def is_alive(pid: int) -> bool:
    """Whether there is such a process; where that cannot be asked harmlessly (Windows), yes."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _open_to_readers(folder: Path) -> None:
    """Give what is in a private scratch folder the rights that new files usually have."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
