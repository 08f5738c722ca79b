"""Folders that Hugging Face `datasets` saved, in record batches that are checked before they are used."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmpeft.data.formats.limits import check_columns, check_regular
from vlmpeft.data.formats.values import shown
from vlmpeft.runtime.errors import UserError


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder with a state.json, in order.

    Raises:
        UserError: state.json does not name files of the folder.
    """
    state_path = folder / "state.json"
    check_regular(state_path)
    state = json.loads(state_path.read_text(encoding="utf-8"))
    if state.get("_indices_data_files"):
        raise UserError(
            "its rows are chosen by another file; load it with datasets and save it again"
        )
    names = [entry["filename"] for entry in state["_data_files"]]
    for name in names:
        # datasets writes plain names; anything else leads out of the folder
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"state.json names the file {shown(name)}; its files are beside it")
        check_regular(folder / name)
    return [folder / name for name in names]


def saved_batches(files: list[Path]) -> Iterator[Any]:
    """The record batches of Arrow streams, mapped into memory.

    Raises:
        UserError: a stream is compressed: `datasets` writes none, and 1 kB of it may hold gigabytes.
    """
    import pyarrow as pa

    for file in files:
        with pa.memory_map(str(file)) as source:
            _check_messages(source, file)
            source.seek(0)
            with pa.ipc.open_stream(source) as reader:
                check_columns(len(reader.schema))
                for batch in reader:
                    # Arrow trusts the lengths and places in a stream, and would read beside them
                    batch.validate(full=True)
                    yield batch


def _check_messages(source: Any, file: Path) -> None:
    import pyarrow as pa

    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type != "schema" and _is_compressed(bytes(message.metadata)):
            raise UserError(
                f"{file.name} is compressed, which datasets does not write; load it and save it with "
                "datasets.save_to_disk"
            )


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message of record batches has a `compression`.

    The tables and the numbers of their fields are those of https://github.com/apache/arrow/blob/main/format/Message.fbs:
    Message.header_type 1, Message.header 2, DictionaryBatch.data 1, RecordBatch.compression 3.
    """
    root = _number(metadata, 0, "<I")
    kind = _number(metadata, _field(metadata, root, 1) or 0, "<B")
    batch = _table(metadata, root, 2)
    if kind == 2:  # DictionaryBatch
        batch = _table(metadata, batch, 1)
    return _field(metadata, batch, 3) is not None


def _table(content: bytes, table: int, number: int) -> int:
    """Where the table in a field of a FlatBuffers table is."""
    at = _field(content, table, number)
    if at is None:
        raise ValueError("a message without a record batch")
    return at + _number(content, at, "<I")


def _field(content: bytes, table: int, number: int) -> int | None:
    """Where a field of a FlatBuffers table is, or None if it is left out."""
    places = table - _number(content, table, "<i")
    if 4 + 2 * number >= _number(content, places, "<H"):
        return None
    offset = _number(content, places + 4 + 2 * number, "<H")
    return table + offset if offset else None


def _number(content: bytes, at: int, form: str) -> int:
    if not 0 <= at <= len(content) - struct.calcsize(form):
        raise ValueError("a damaged message")
    return struct.unpack_from(form, content, at)[0]
