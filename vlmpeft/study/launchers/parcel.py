"""A run folder on its way to another machine, as a tar file in parts."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vlmpeft.runtime.atomic_folder import replaced_whole
from vlmpeft.runtime.errors import UserError

CHECKPOINT = "checkpoints/last.ckpt"
PART_BYTES = 2**24
_LOG = "metrics.csv"


def pack(folder: Path, parcel: Path) -> int:
    """Write the files of a folder, in which a run may be going on, into a tar file; returns its bytes.

    The checkpoint is read first and the log last: the log then has every step that the checkpoint has.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    with tarfile.open(parcel, "w") as tar:
        for path in sorted(files, key=lambda path: _turn(path.relative_to(folder).as_posix())):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                tar.addfile(
                    tar.gettarinfo(arcname=str(path.relative_to(folder)), fileobj=file), file
                )
    return parcel.stat().st_size


def _turn(name: str) -> tuple[bool, bool, str]:
    return name == _LOG, name != CHECKPOINT, name


def unpack(parcel: Path, folder: Path) -> None:
    """Replace a folder by what was packed, as a whole.

    Raises:
        UserError: it is no tar file of files below one folder, or cannot be written.
    """
    try:
        with replaced_whole(folder) as scratch, tarfile.open(parcel) as tar:
            for member in tar:
                _extract(tar, member, scratch)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"folder {folder} could not be brought over: {error}") from error


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = PurePosixPath(member.name)
    content = tar.extractfile(member) if member.isreg() else None
    if content is None or name.is_absolute() or ".." in name.parts:
        raise UserError(f"parcel has {member.name!r}, which is no file below its folder")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


def parts(parcel: Path) -> Iterator[bytes]:
    """The bytes of a file, some megabytes at a time."""
    with parcel.open("rb") as file:
        while part := file.read(PART_BYTES):
            yield part
