"""Parquet files and Hugging Face `datasets` folders: rows whose pictures may be bytes."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vlmpeft.data.conversation import Image
from vlmpeft.data.formats.files import Records
from vlmpeft.data.formats.limits import ROW_BYTES, SLICE_BYTES, Allowance, check_regular, check_row
from vlmpeft.data.formats.pages import parquet_batches
from vlmpeft.data.formats.saved import saved_batches, saved_files
from vlmpeft.data.formats.sizes import row_bytes
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.shipped import cache_dir

_LONGEST_REASON = 300  # characters of what a library says
# what pyarrow raises on broken files beside pyarrow's own errors
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
# what the hub and `datasets` call a split
_SPLIT_NAMES = {
    "train": ("train",),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}


def read_parquet(file: Path) -> Records:
    """(place, row) of a Parquet file; image bytes become Images in a file of the cache.

    Raises:
        UserError: not a Parquet file, or pyarrow is not installed.
    """
    _require_pyarrow()
    check_regular(file)
    what = f"data file {file}", " as Parquet"
    yield from _pictured_rows(str(file), file, [file], parquet_batches(file), what)


def read_dataset(folder: Path, split: str) -> Records:
    """(place, row) of a folder that `datasets` saved, or of a folder of Parquet files.

    Args:
        folder: with one split (state.json), several (dataset_dict.json), or Parquet files anywhere below.
        split: train, val or test: which of several to take; of a folder with one split, that.

    Raises:
        UserError: neither, or it has no such split.
    """
    if (folder / "dataset_dict.json").is_file():
        names = [path.parent.name for path in sorted(folder.glob("*/state.json"))]
        folder = folder / _choose(names, split, folder)
    if (folder / "state.json").is_file():
        yield from _saved_rows(folder)
        return
    for file in _parquet_files(folder, split):
        yield from read_parquet(file)


def _parquet_files(folder: Path, split: str) -> list[Path]:
    """Those of a split where the hub's layout says of which they are, else all."""
    files = [
        file
        for file in sorted(folder.rglob("*.parquet"))
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(
            f"data folder {folder} holds neither a saved data set (state.json) nor Parquet files; give the "
            "file itself, or a pattern"
        )
    splits = [_split_of(file.relative_to(folder)) for file in files]
    named = sorted({name for name in splits if name})
    if not named:
        return files
    chosen = _choose(named, split, folder)
    return [file for file, name in zip(files, splits, strict=True) if name == chosen]


def _split_of(file: Path) -> str | None:
    """The split that a file is of: data/train-00000-of-00002.parquet, default/train/0000.parquet."""
    known = {name for names in _SPLIT_NAMES.values() for name in names}
    parts = [re.split(r"[-.]", file.stem)[0], *reversed(file.parent.parts)]
    return next((part for part in parts if part in known), None)


def _choose(names: Sequence[str], split: str, folder: Path) -> str:
    found = next((name for name in _SPLIT_NAMES.get(split, ()) if name in names), None)
    if found:
        return found
    if len(names) == 1 and not (names[0] == "train" and split in ("val", "test")):
        return names[0]
    raise UserError(
        f"data folder {folder} has no {split} split; it has {', '.join(names) or 'none'}"
        + ("; data.val and data.test may be a share of train, such as 0.1" if names else "")
    )


def _saved_rows(folder: Path) -> Records:
    _require_pyarrow()
    try:
        files = saved_files(folder)
    except _BROKEN as error:
        raise UserError(f"data folder {folder} cannot be read: {_reason(error)}") from error
    what = f"data folder {folder}", ""
    yield from _pictured_rows(str(folder), folder / "state.json", files, saved_batches(files), what)


def _pictured_rows(
    place: str, key: Path, files: list[Path], batches: Iterator[Any], what: tuple[str, str]
) -> Records:
    """(place, row) of record batches, with pictures in the cache.

    Args:
        place: what places of rows begin with.
        key: the file that the pictures in the cache are known by.
        files: what is read.
        batches: of the files.
        what: how messages begin, and what it cannot be read as.
    """
    import pyarrow as pa

    size = sum(file.stat().st_size for file in files)
    try:
        with _PictureStore(key) as pictures:
            yield from _rows(_bounded(batches, Allowance(size)), place, pictures, Allowance(size))
    except UserError as error:
        raise UserError(f"{what[0]}: {error}") from error
    except (pa.ArrowException, *_BROKEN) as error:
        raise UserError(f"{what[0]} cannot be read{what[1]}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."


def _rows(parts: Any, place: str, pictures: _PictureStore, allowance: Allowance) -> Records:
    number = 0
    for part in parts:
        labels = _class_labels(part.schema)
        for row in part.to_pylist():
            named = {key: _label(row[key], names) for key, names in labels.items()}
            taken = pictures.take(row | named)
            # text outside of ASCII takes up to four times what it did in Arrow
            allowance.take_row(taken)
            yield f"{place} row {number}", taken
            number += 1


def _bounded(batches: Iterator[Any], allowance: Allowance) -> Iterator[Any]:
    """Record batches in parts that take at most SLICE_BYTES, or are one row, as Python objects."""
    number = 0
    for batch in batches:
        allowance.take(ROW_BYTES * batch.num_rows)  # rows of nulls may have no data at all
        sizes = row_bytes(batch)
        check_row(sizes.max(initial=0), number + int(sizes.argmax() if len(sizes) else 0))
        allowance.take(sizes.sum())
        number += len(sizes)
        cuts = _cuts(sizes.tolist())
        for begin, end in itertools.pairwise(cuts):
            yield batch.slice(begin, end - begin)


def _cuts(sizes: list[float]) -> list[int]:
    """Where rows of these sizes are cut, the two ends among them."""
    cuts, taken = [0], 0.0
    for at, size in enumerate(sizes):
        if at > cuts[-1] and taken + size > SLICE_BYTES:
            cuts.append(at)
            taken = 0.0
        taken += size
    return [*cuts, len(sizes)]


def _class_labels(schema: Any) -> dict[str, list[str]]:
    """Column -> the names of its classes, for those that `datasets` keeps as numbers (ClassLabel)."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
        return {
            key: list(feature["names"])
            for key, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, AttributeError, TypeError):  # another library's metadata
        return {}


def _label(value: Any, names: list[str]) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _require_pyarrow() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("this needs pyarrow, which is not installed: pip install 'vlmpeft[data]'")


class _PictureStore:
    """Puts pictures that come as bytes into one file of the cache, each once, so that workers can seek them.

    Args:
        origin: the file the pictures come from; another size or time of it is another store.
    """

    def __init__(self, origin: Path):
        state = origin.stat()
        key = f"{origin.resolve()} {state.st_size} {state.st_mtime_ns}"
        name = hashlib.sha256(key.encode()).hexdigest()[:24]
        self._path = cache_dir() / "pictures" / f"{name}.bin"
        self._known: dict[bytes, Image] = {}
        self._end = 0
        self._file = cast(Any, None)
        # decided once: another process may finish the same store meanwhile
        self._is_there = self._path.is_file()

    def __enter__(self) -> _PictureStore:
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        if self._file is None:
            return
        self._file.close()
        scratch = Path(self._file.name)
        if failed:
            scratch.unlink(missing_ok=True)
        else:
            scratch.replace(self._path)

    def take(self, value: Any) -> Any:
        """The value with every `bytes`, and every {bytes, path} of `datasets`, replaced by an Image."""
        if isinstance(value, bytes):
            return self._image(value)
        if isinstance(value, dict):
            if isinstance(value.get("bytes"), bytes):
                return replace(self._image(value["bytes"]), name=value.get("path") or "")
            return {key: self.take(entry) for key, entry in value.items()}
        return [self.take(entry) for entry in value] if isinstance(value, list) else value

    def _image(self, content: bytes) -> Image:
        digest = hashlib.sha256(content).digest()
        if digest not in self._known:
            self._write(content)
            self._known[digest] = Image(str(self._path), self._end, len(content))
            self._end += len(content)
        return self._known[digest]

    def _write(self, content: bytes) -> None:
        """Append to a scratch file; a store that is there already has the same bytes in the same places."""
        if self._is_there:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False)  # noqa: SIM115
            self._file.write(content)
        except OSError as error:
            raise UserError(
                f"its pictures cannot be put into {self._path.parent}: {error.strerror}; "
                "VLMPEFT_CACHE may name another folder"
            ) from error
