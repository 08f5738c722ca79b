"""Tar shards in the WebDataset layout: files that share a name up to the first dot are one sample.

Pictures stay where they are: a sample holds the byte range of each, so a set larger than memory is shuffled,
bucketed and resumed like any other. Only texts are kept in memory.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from vlmpeft.data.conversation import Image
from vlmpeft.data.formats.files import Records
from vlmpeft.data.formats.limits import in_mb
from vlmpeft.data.formats.values import printable
from vlmpeft.runtime.errors import UserError

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_TEXTS = ("json", "txt")  # any other file may be binary, and is then left out
_LONGEST_TEXT = 2**26  # bytes; a .json of this size takes 20 times as much while it is read


def read_shard(file: Path) -> Records:
    """(place, record) of each sample of an uncompressed tar file; a UserError for one that is broken.

    `name.json` gives the record's fields, `name.jpg` (png, ...) its image, every other `name.EXT` a text in
    the column EXT; `name.left.jpg` and `name.right.jpg` are two images in the order of the file.

    Raises:
        UserError: not a tar file, a damaged one, or a compressed one, in which nothing can be found by position.
    """
    try:
        with tarfile.open(file, "r:") as shard:
            for name, members in _samples(shard, file).items():
                yield f"{file} sample {printable(name)}", _record(shard, file, members)
    except UserError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"data file {file} cannot be read as an uncompressed tar file: {error}; unpack a .tar.gz first"
        ) from error


def _samples(shard: tarfile.TarFile, file: Path) -> dict[str, list[tarfile.TarInfo]]:
    """Name -> its files, wherever they are in the shard."""
    samples: dict[str, list[tarfile.TarInfo]] = {}
    for member in shard:
        stem, extension = _split_name(member.name)
        hidden = Path(member.name).name.startswith(".")  # macOS adds ._name.jpg
        if member.isfile() and extension and not hidden:
            samples.setdefault(stem, []).append(member)
    _check_end(shard, file)
    return samples


def _check_end(shard: tarfile.TarFile, file: Path) -> None:
    """Refuse a shard without its end mark: tarfile takes a header that it cannot read for the end."""
    with file.open("rb") as content:
        content.seek(shard.offset)
        if content.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
            return
    raise UserError(
        f"data file {file} is cut or damaged at byte {shard.offset}: a tar file ends with a block of zeros; "
        "copy it, or write it, again"
    )


def _split_name(name: str) -> tuple[str, str]:
    """(name up to the first dot, what follows it in lower case)."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _record(shard: tarfile.TarFile, file: Path, members: list[tarfile.TarInfo]) -> Any:
    record: dict[str, Any] = {"id": _split_name(members[0].name)[0]}
    images = []
    for member in members:
        extension = _split_name(member.name)[1]
        if member.issparse():  # 1 kB may stand for 100 GB of zeros
            return UserError(
                f"{printable(member.name)} is stored with holes, so it is not found by position; write the "
                "tar file without --sparse"
            )
        if extension.rpartition(".")[2] in _PICTURES:
            name = printable(member.name)
            images.append(Image(str(file), member.offset_data, member.size, name=name))
            continue
        try:
            record |= _fields(shard, member, extension)
        except UserError as error:
            return error
    if images:
        record.pop("images", None)  # where they were before they came into the shard
        record["image"] = images
    return record


def _fields(shard: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> dict[str, Any]:
    """What a file of a sample adds to its record."""
    if member.size > _LONGEST_TEXT:
        if extension not in _TEXTS:
            return {}
        raise UserError(
            f"{printable(member.name)} has {in_mb(member.size)}; a text has at most {in_mb(_LONGEST_TEXT)}"
        )
    reader = shard.extractfile(member)
    try:
        content = reader.read().decode("utf-8-sig") if reader else ""
        fields = json.loads(content) if extension == "json" else {extension: content.strip()}
    except UnicodeDecodeError as error:
        if extension not in _TEXTS:
            return {}
        raise UserError(f"{printable(member.name)} is not UTF-8 text: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(member.name)} is not valid JSON: {error}") from error
    return fields if isinstance(fields, dict) else {"json": fields}
