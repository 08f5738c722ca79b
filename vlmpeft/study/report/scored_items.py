"""What statistics need of an `items.jsonl.gz`, three times as fast as reading all of it."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

_NEEDED = frozenset(("id", "image", "fields", "scores"))
# What stands between the pictures and the scores of a line: texts and token log-probabilities. A quotation mark inside a JSON
# string is escaped, so neither key can be found inside one; found inside another object, it unbalances the braces of its line,
# and what is left is no JSON or lacks a key.
_UNNEEDED = re.compile(rb', "prompt": .*, "scores": ')


def read_scored(path: Path) -> list[dict[str, Any]]:
    """Each item's id, pictures, fields and scores, and perhaps more of it.

    Raises:
        OSError: the file cannot be read.
        EOFError: it is cut off.
        ValueError: it is damaged, or not JSON lines.
    """
    try:
        lines = gzip.decompress(path.read_bytes())
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from error
    if not lines:
        raise ValueError("no item in it")
    try:
        items = _parse(_UNNEEDED.sub(b', "scores": ', lines))
    except ValueError:
        items = []
    if not items or not all(map(_NEEDED.issubset, items)):  # written in another order
        items = _parse(lines)
    return items


def _parse(lines: bytes) -> list[dict[str, Any]]:
    return json.loads(b"[" + b",".join(lines.splitlines()) + b"]")
