"""How large rows of Arrow become as Python objects, told without making any.

A dictionary, a list view or a list of nulls takes a few bytes in Arrow and any number outside of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmpeft.data.formats.limits import check_cell
from vlmpeft.runtime.errors import UserError

_VALUE_BYTES = 32  # a number, a reference, the head of a text


def row_bytes(batch: Any) -> np.ndarray:
    """(rows,) float bytes of each row of a record batch.

    Raises:
        UserError: a cell is too large, or a column is of a type that is not read.
    """
    sizes = np.zeros(batch.num_rows)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        sizes += _sizes(column, name)
    return sizes


def _sizes(array: Any, column: str) -> np.ndarray:
    """(length,) bytes of each entry; float, because products of lengths have no limit."""
    import pyarrow as pa

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _sizes(array.storage, column)
    fixed = _fixed_bytes(kind)
    if fixed is not None:
        return np.full(len(array), fixed)
    if pa.types.is_dictionary(kind):
        return _chosen(array, _sizes(array.dictionary, column))
    if pa.types.is_struct(kind):
        children = [_sizes(child, column) for child in array.flatten()]
        return np.sum([*children, np.full(len(array), float(_VALUE_BYTES))], axis=0)
    if _is_list(kind):
        return _list_sizes(array, column)
    if _is_text(kind):
        return _text_sizes(array, column)
    raise UserError(
        f"column {column} is of the type {str(kind)[:80]}, which is not read; leave it out, or write it as text"
    )


def _fixed_bytes(kind: Any) -> float | None:
    """Bytes of an entry of a type whose entries are all as large; such types may have no data at all."""
    import pyarrow as pa

    if pa.types.is_fixed_size_binary(kind):
        return float(_VALUE_BYTES + kind.byte_width)
    if pa.types.is_primitive(kind) or pa.types.is_null(kind) or pa.types.is_decimal(kind):
        return float(_VALUE_BYTES)
    if isinstance(kind, pa.BaseExtensionType):
        return _fixed_bytes(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        inner = _fixed_bytes(kind.value_type) if kind.list_size else 0.0
        return None if inner is None else _VALUE_BYTES + kind.list_size * inner
    if pa.types.is_struct(kind):
        inner_all = [_fixed_bytes(kind.field(i).type) for i in range(kind.num_fields)]
        known = [inner for inner in inner_all if inner is not None]
        return _VALUE_BYTES + sum(known) if len(known) == len(inner_all) else None
    return None


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    tests = (types.is_list, types.is_large_list, types.is_map, types.is_fixed_size_list)
    views = (types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in (*tests, *views))


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    tests = (types.is_string, types.is_large_string, types.is_string_view)
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(test(kind) for test in (*tests, *binary))


def _text_sizes(array: Any, column: str) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        # compute has no lengths of views, whose entries may all be the same bytes
        lengths = np.array([0 if not one.is_valid else len(one.as_buffer()) for one in array])
    else:
        lengths = _numbers(pc.call_function("binary_length", [array]))
    check_cell(lengths.max(initial=0), column)
    return lengths + float(_VALUE_BYTES)


def _chosen(array: Any, sizes: np.ndarray) -> np.ndarray:
    """The sizes of a dictionary's entries by the rows that refer to them."""
    if not len(sizes):
        return np.full(len(array), float(_VALUE_BYTES))
    return np.where(_numbers(array.is_valid()), sizes[_numbers(array.indices)], float(_VALUE_BYTES))


def _list_sizes(array: Any, column: str) -> np.ndarray:
    import pyarrow as pa

    starts, lengths = _ranges(array)
    inner = _fixed_bytes(array.type.value_type if not pa.types.is_map(array.type) else pa.null())
    if pa.types.is_map(array.type):
        entries = [_sizes(array.keys, column), _sizes(array.items, column)]
        sizes = entries[0] + entries[1] + _VALUE_BYTES
    elif inner is not None:
        return lengths * inner + _VALUE_BYTES
    else:
        sizes = _sizes(array.values, column)
    sums = np.concatenate([[0.0], np.cumsum(sizes)])
    return sums[starts + lengths] - sums[starts] + _VALUE_BYTES


def _ranges(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """(first entry, number of entries) of each list; none of a null."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        starts = (np.arange(len(array)) + array.offset) * size
        return starts, np.full(len(array), size)
    offsets = _numbers(array.offsets)
    if pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        lengths = _numbers(array.sizes)
    else:
        lengths, offsets = np.diff(offsets), offsets[:-1]
    return offsets, np.where(_numbers(array.is_valid()), lengths, 0)


def _numbers(array: Any) -> np.ndarray:
    """Of an array of numbers or booleans, 0 for null."""
    if array.null_count:
        array = array.fill_null(0)
    return np.asarray(array.to_numpy(zero_copy_only=False)).astype(np.int64)
