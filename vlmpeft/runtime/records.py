"""Records and items of a run: reading them, and writing them atomically."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError

SCHEMA = 1


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole: after a crash or on a full disk the old content is still there.

    Raises:
        UserError: it could not be written.
    """
    # a name of its own: two processes may write the same file at once
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error


def read_short(path: Path, most_characters: int = 2**20) -> str:
    """The text of a file that nobody needs to be long, such as a chat template.

    Raises:
        UserError: it is longer, is no UTF-8, or cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(most_characters + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if len(text) > most_characters:
        raise UserError(
            f"{path} has more than {most_characters:,} characters, too many for a template"
        )
    return text


def write_json(path: Path, value: Any) -> None:
    """A value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=False) + "\n").encode())


def read_json_or_none(path: Path) -> Any:
    """The content of a JSON file; None if there is no such file or it holds no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_items(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """Items as gzipped JSON lines, atomically; the same items always give the same bytes."""
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    write_atomically(path, gzip.compress(lines.encode(), mtime=0))


def write_predictions(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """What was asked, expected and answered, as JSON lines, atomically."""
    keys = ("id", "image", "prompt", "expected", "generated", "finish_reason")
    lines = (json.dumps({key: item[key] for key in keys}, ensure_ascii=False) for item in items)
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def read_items(path: Path) -> list[dict[str, Any]]:
    """The items of an `items.jsonl.gz`."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """The record of a run, or None if it has not left one.

    Raises:
        UserError: what is there is no record.
    """
    path = run_dir / "result.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"record {path} cannot be read: {error}; remove it") from error
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        raise UserError(f"record {path} has no status, so it is none of vlmpeft's; remove it")
    return record
