"""Tar shards in the WebDataset layout: files that share a name up to the first dot are one sample.

Pictures stay where they are: a sample holds the byte range of each, so a set larger than memory is shuffled,
bucketed and resumed like any other. Only texts are kept in memory.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmpeft.data.conversation import Image
from vlmpeft.errors import UserError

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")


def read_shard(file: Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of each sample of an uncompressed tar file.

    `name.json` gives the record's fields, `name.jpg` (png, ...) its image, every other `name.EXT` a text in
    the column EXT; `name.left.jpg` and `name.right.jpg` are two images in the order of the file.

    Raises:
        UserError: not a tar file, or a compressed one, in which nothing can be found by position.
    """
    try:
        with tarfile.open(file, "r:") as shard:
            name, members = "", []
            for member in shard:
                if not member.isfile():
                    continue
                prefix = _split_name(member.name)[0]
                if members and prefix != name:
                    yield f"{file} sample {name}", _record(shard, file, members)
                    members = []
                name = prefix
                members.append(member)
            if members:
                yield f"{file} sample {name}", _record(shard, file, members)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"data file {file} cannot be read as an uncompressed tar file: {error}; unpack a .tar.gz first"
        ) from error


def _split_name(name: str) -> tuple[str, str]:
    """(name up to the first dot, what follows it in lower case)."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _record(shard: tarfile.TarFile, file: Path, members: list[tarfile.TarInfo]) -> Any:
    record: dict[str, Any] = {"id": _split_name(members[0].name)[0]}
    images = []
    for member in members:
        extension = _split_name(member.name)[1]
        if extension.rpartition(".")[2] in _PICTURES:
            images.append(Image(str(file), member.offset_data, member.size, name=member.name))
            continue
        reader = shard.extractfile(member)
        content = reader.read().decode("utf-8", "replace") if reader else ""
        if extension != "json":
            record[extension] = content
            continue
        try:
            fields = json.loads(content)
        except (json.JSONDecodeError, RecursionError) as error:
            return f"{member.name} is not valid JSON: {error}"
        record |= fields if isinstance(fields, dict) else {"json": fields}
    return record | ({"image": images} if images else {})
