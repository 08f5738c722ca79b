"""Parquet files in batches that fit into memory: pages say how large they get, before any is unpacked.

The footer cannot be trusted with it, because the reader decodes by the header in front of each page. Headers are
Thrift structs in the compact protocol: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from vlmpeft.data.formats.limits import (
    BATCH_BYTES,
    LARGEST_PAGES_BYTES,
    ROW_BYTES,
    Allowance,
    check_cell,
    check_columns,
    check_row,
    in_mb,
)
from vlmpeft.data.formats.sizes import row_bytes
from vlmpeft.runtime.errors import UserError

_ROWS_AT_ONCE = 256
_LONGEST_FOOTER = 2**26  # bytes; 2,000 row groups of 100 columns have 20 MB
# pages of a group that are this much larger than on disk are ordinary, however large they are
_ORDINARY_EXPANSION = 8
_ENTRY_BYTES = 16  # of a list, while it is read: two levels, a value, its place

_WINDOW, _LONGEST_HEADER = 2**12, 2**24  # the latter is Arrow's own limit
# what a page costs at least, so that millions of empty ones count
_PAGE_BYTES = 2**12
_PADDING = 100  # Arrow reads on for this much, as old writers give the length without a header
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
DELTA_BYTE_ARRAY = 7


@dataclass
class Pages:
    """What unpacking a column of a row group takes.

    Args:
        dictionary_bytes: of its dictionary.
        largest_bytes: of its largest data page.
        total_bytes: of all its pages.
        values: number of values, nulls and entries of lists among them.
        encodings: of its data pages, as numbers of the format.
    """

    dictionary_bytes: int = 0
    largest_bytes: int = 0
    total_bytes: int = 0
    values: int = 0
    encodings: set[int] = field(default_factory=set)


def parquet_batches(file: Path) -> Iterator[Any]:
    """Record batches of a Parquet file, none of which takes much more than BATCH_BYTES or its largest row.

    Raises:
        UserError: it unpacks to more than a file of its size may, or a part of it does.
    """
    from pyarrow.parquet import ParquetFile

    size = file.stat().st_size
    _check_footer(file, size)
    # a buffer, or Arrow reads the whole column of a group of rows
    with file.open("rb") as raw, ParquetFile(file, buffer_size=2**20) as parquet:
        check_columns(len(parquet.schema))
        allowance = Allowance(size)
        allowance.take(ROW_BYTES * max(0, parquet.metadata.num_rows))
        groups, chosen = range(parquet.num_row_groups), Allowance(size)
        sizes = [_largest_row(parquet, group, raw, allowance) for group in groups]
        for group in groups:
            largest = sizes[group] + _largest_chosen(parquet, file, group, raw, chosen)
            number = int(max(1, min(_ROWS_AT_ONCE, BATCH_BYTES // max(1, largest))))
            yield from parquet.iter_batches(number, row_groups=[group])


def _check_footer(file: Path, size: int) -> None:
    with file.open("rb") as raw:
        raw.seek(max(0, size - 8))
        length = int.from_bytes(raw.read(8)[:4], "little")
    if _LONGEST_FOOTER < length < size:
        raise UserError(
            f"a footer of {in_mb(length)}; {in_mb(_LONGEST_FOOTER)} are allowed: write fewer columns and "
            "larger row groups"
        )


def _largest_row(parquet: Any, group: int, raw: BinaryIO, allowance: Allowance) -> float:
    """Most bytes of an ordinary row of a group; lists of texts are told by `_largest_chosen`."""
    rows = parquet.metadata.row_group(group)
    row = at_once = 0.0
    for index in range(rows.num_columns):
        chunk, column = rows.column(index), parquet.schema.column(index)
        if chunk.file_path:
            raise UserError(
                f"column {chunk.path_in_schema} is in another file, {chunk.file_path[:80]!r}; "
                "write one file"
            )
        pages = read_pages(raw, chunk, allowance)
        is_list = column.max_repetition_level > 0
        at_once += pages.largest_bytes + pages.dictionary_bytes
        at_once += _ENTRY_BYTES * pages.values if is_list else column.length or 0
        row += pages.total_bytes / max(1, rows.num_rows)
        row += _largest_value(pages, column) * (not is_list)
        if is_list:
            _check_lists(pages, column, chunk.total_compressed_size)
    _check_pages(
        at_once, sum(rows.column(i).total_compressed_size for i in range(rows.num_columns))
    )
    return row


def _check_pages(num_bytes: float, compressed: int, what: str = "its columns") -> None:
    allowed = max(LARGEST_PAGES_BYTES, _ORDINARY_EXPANSION * compressed)
    if num_bytes > allowed:
        raise UserError(
            f"{what} unpack to {in_mb(num_bytes)} at once; {in_mb(allowed)} are allowed: write smaller "
            "row groups or smaller pages (pyarrow.parquet.write_table, row_group_size=100)"
        )


def _largest_value(pages: Pages, column: Any) -> int:
    """Most bytes that a value may unpack to beside what its page has: a few bits choose it."""
    if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return column.length  # a null takes as much
    # a value may begin like the one before it
    grown = pages.total_bytes if DELTA_BYTE_ARRAY in pages.encodings else 0
    return max(pages.dictionary_bytes, grown)


def _check_lists(pages: Pages, column: Any, compressed: int) -> None:
    """Refuse lists whose entries have no bound but the number of them times the largest."""
    fixed = column.physical_type == "FIXED_LEN_BYTE_ARRAY"
    if fixed or DELTA_BYTE_ARRAY in pages.encodings:
        most = pages.values * _largest_value(pages, column)
        _check_pages(most, compressed, f"the lists of column {column.path}")


def _largest_chosen(
    parquet: Any, file: Path, group: int, raw: BinaryIO, allowance: Allowance
) -> float:
    """Most bytes of lists of a row: their entries may all be one long text of a dictionary.

    Raises:
        UserError: a row is too large, or all are that refer to a dictionary.
    """
    from pyarrow.parquet import ParquetFile

    rows, total = parquet.metadata.row_group(group), 0.0
    for index in range(rows.num_columns):
        chunk, column = rows.column(index), parquet.schema.column(index)
        if column.physical_type != "BYTE_ARRAY":
            continue
        is_list = column.max_repetition_level > 0
        pages = read_pages(raw, chunk, Allowance(2**62))
        if pages.values * pages.dictionary_bytes <= BATCH_BYTES // 4:
            total += pages.values * pages.dictionary_bytes * is_list
            continue
        # as references into the dictionary, which take 4 bytes each
        with ParquetFile(file, buffer_size=2**20, read_dictionary=[column.path]) as same:
            table = same.read_row_group(group, columns=[column.path])
        for batch in table.to_batches():
            sizes = row_bytes(batch)
            check_row(sizes.max(initial=0), int(sizes.argmax()) if len(sizes) else 0)
            allowance.take(sizes.sum())
            total += sizes.max(initial=0) * is_list
    return total


def read_pages(file: BinaryIO, chunk: Any, allowance: Allowance) -> Pages:
    """Walk over the page headers of a column chunk.

    Args:
        file: the Parquet file.
        chunk: pyarrow's ColumnChunkMetaData.
        allowance: of the file.

    Raises:
        UserError: a cell is too large, or the file unpacks to too much.
        ValueError: a header that is damaged.
    """
    found = Pages()
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < position:
        position = chunk.dictionary_page_offset
    end = position + chunk.total_compressed_size
    while found.values < chunk.num_values and position < end:
        try:
            header, length = _read_header(file, position)
        except ValueError:
            if position >= end - _PADDING and found.values:  # padding
                break
            raise
        _add(found, header, chunk.path_in_schema)
        allowance.take(_PAGE_BYTES + header[2])
        position += length + header[3]
    return found


def _add(found: Pages, header: dict[int, Any], column: str) -> None:
    size = header[2]
    found.total_bytes += size
    if header.get(1) == _DICTIONARY:
        found.dictionary_bytes += size
        details = header.get(7, {})
    else:
        found.largest_bytes = max(found.largest_bytes, size)
        details = header.get({_DATA: 5, _DATA_V2: 8}.get(header.get(1, -1), 0), {})
        found.values += max(0, details.get(1, 0))
        found.encodings.add(details.get(4 if header.get(1) == _DATA_V2 else 2, 0))
    if not _is_size(details.get(1, 0)):
        raise ValueError("page header with a number of values that is none")
    check_cell(size // max(1, details.get(1, 1)), column)


def _read_header(file: BinaryIO, position: int) -> tuple[dict[int, Any], int]:
    """(fields by number, length) of the header at a position; it may hold a text of statistics."""
    window = _WINDOW
    while True:
        file.seek(position)
        content = file.read(window)
        try:
            header, length = _struct(content, 0, 0)
        except IndexError as error:
            if len(content) < window or window >= _LONGEST_HEADER:
                raise ValueError(f"page header at byte {position} is cut") from error
            window *= 16
            continue
        if not (_is_size(header.get(2)) and _is_size(header.get(3))):
            raise ValueError(f"page header at byte {position} is damaged")
        return header, length


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**31


def _struct(content: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """(fields, where it ends); fields and types that page headers do not have are refused."""
    fields: dict[int, Any] = {}
    number = 0
    while content[at]:
        step, kind = content[at] >> 4, content[at] & 15
        at += 1
        if step:
            number += step
        else:
            number, at = _integer(content, at)
        if number in fields or depth > 3:
            raise ValueError("page header holds a field twice")
        fields[number], at = _value(content, at, kind, depth)
    return fields, at + 1


def _value(content: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false
        return kind == 1, at
    if kind == 3:
        return content[at], at + 1
    if kind in (4, 5, 6):
        return _integer(content, at)
    if kind == 8:  # a text, which is not looked at
        size, at = _varint(content, at)
        if at + size > len(content):
            raise IndexError
        return None, at + size
    if kind == 12:
        return _struct(content, at, depth + 1)
    raise ValueError(f"page header holds a value of the unknown type {kind}")


def _integer(content: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(content, at)
    return (value >> 1) ^ -(value & 1), at  # zigzag


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("page header holds a number that is too long")
