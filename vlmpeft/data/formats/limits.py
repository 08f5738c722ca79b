"""How much of memory and time a data file may take: what it says of itself is somebody else's word."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError

# a photo of 100 MB as base64 text is 2 ** 27 bytes
LARGEST_CELL_BYTES = 2**27
# a few such photos in one row
LARGEST_ROW_BYTES = 2**29
# what is decoded at once: one page of every column of a Parquet file
LARGEST_PAGES_BYTES = 2**29
# what is decoded at once of ordinary rows, and turned into Python objects at once
BATCH_BYTES = 2**28
SLICE_BYTES = 2**24
# tables have hundreds; a row of millions costs minutes and gigabytes before anything is read of it
MOST_COLUMNS = 10_000
# a JSON list in a cell: an empty list is 3 characters, and 72 bytes of memory
MOST_ENTRIES = 2**20
# zstd makes 3 of 1 of texts, 30 of 1 of tables of numbers, and 10,000 of 1 of zeros
LARGEST_EXPANSION = 64
# below this a file may hold what it likes: 16 MB of texts, all of them repeated
SMALLEST_ALLOWANCE_BYTES = 2**30
# a conversation of a short question and a short answer
ROW_BYTES = 1024
_MB = 1_000_000


class Allowance:
    """What may be made of a file: SMALLEST_ALLOWANCE_BYTES, or LARGEST_EXPANSION of its size.

    Args:
        size_bytes: how large the file is on disk.
    """

    def __init__(self, size_bytes: int):
        self._taken = 0.0
        self._limit = max(SMALLEST_ALLOWANCE_BYTES, LARGEST_EXPANSION * size_bytes)
        self._size = size_bytes

    def take(self, num_bytes: float) -> None:
        """Count what was, or is going to be, unpacked.

        Raises:
            UserError: more than allowed.
        """
        self._taken += num_bytes
        if self._taken > self._limit:
            raise UserError(
                f"{in_mb(self._size)} that unpack to more than {in_mb(self._limit)}, which is what they may: "
                "it is damaged or made to fill memory; a table that is meant is written as several files, "
                "or without compression"
            )

    def take_row(self, row: Any) -> None:
        """Count a row by the memory that its values take."""
        self.take(ROW_BYTES + _memory(row))


def in_mb(num_bytes: float) -> str:
    """A size as messages give it."""
    return f"{num_bytes / _MB:,.0f} MB" if num_bytes >= _MB else f"{num_bytes:,.0f} bytes"


def check_cell(num_bytes: float, column: str) -> None:
    """Refuse a cell that no photo and no text is as large as.

    Raises:
        UserError: more than LARGEST_CELL_BYTES.
    """
    if num_bytes > LARGEST_CELL_BYTES:
        raise UserError(
            f"column {column} holds a cell of {in_mb(num_bytes)}; {in_mb(LARGEST_CELL_BYTES)} are "
            "allowed: split a text, and scale a picture down or give its path"
        )


def check_row(num_bytes: float, number: int) -> None:
    """Refuse a row that no few photos are as large as.

    Raises:
        UserError: more than LARGEST_ROW_BYTES.
    """
    if num_bytes > LARGEST_ROW_BYTES:
        raise UserError(
            f"row {number} takes {in_mb(num_bytes)}; {in_mb(LARGEST_ROW_BYTES)} are allowed: give pictures "
            "as paths, and lists in several rows"
        )


def check_columns(number: int) -> None:
    """Refuse a table that is wider than any.

    Raises:
        UserError: more than MOST_COLUMNS.
    """
    if number > MOST_COLUMNS:
        raise UserError(
            f"a table of {number:,} columns; {MOST_COLUMNS:,} are allowed: leave out those that no "
            "question is made of"
        )


def check_regular(file: Path) -> None:
    """Refuse what is no file: a pipe waits for a writer, a device may never end.

    Raises:
        UserError: a pipe, a device or a socket, or not there.
    """
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"data file {file} cannot be read: {why}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise UserError(f"data file {file} is {kind}, not a file; write it to a file first")


def real_path(path: str | Path) -> Path:
    """Where a path leads after all links, also if nothing is there.

    Raises:
        UserError: no file can be called so.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # with a NUL
        raise UserError(f"path {str(path)[:60]!r} cannot be read: {error}") from error


def _memory(value: Any) -> int:
    """Bytes that a value takes, pictures (which are put on disk) not counted."""
    total, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        total += sys.getsizeof(one)
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return total
