"""Parquet files and Hugging Face `datasets` folders: rows whose pictures may be bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmpeft.data.conversation import Image
from vlmpeft.errors import UserError
from vlmpeft.shipped import cache_dir

_ROWS_AT_ONCE = 256
# what the hub and `datasets` call a split
_SPLIT_NAMES = {
    "train": ("train",),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}


def read_parquet(file: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a Parquet file; image bytes become Images in a file of the cache.

    Raises:
        UserError: not a Parquet file, or pyarrow is not installed.
    """
    pyarrow = _pyarrow()
    from pyarrow.parquet import ParquetFile

    with _PictureStore(file) as pictures:
        try:
            batches = ParquetFile(file).iter_batches(_ROWS_AT_ONCE)
            yield from _rows(batches, str(file), pictures)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"data file {file} cannot be read as Parquet: {error}") from error


def read_dataset(folder: Path, split: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of a folder that `datasets` saved, or of a folder of Parquet files.

    Args:
        folder: with one split (state.json), several (dataset_dict.json), or Parquet files anywhere below.
        split: train, val or test: which of several to take; a folder with one is taken whatever it is called.

    Raises:
        UserError: neither, or it has no such split.
    """
    if (folder / "dataset_dict.json").is_file():
        names = [path.parent.name for path in sorted(folder.glob("*/state.json"))]
        folder = folder / _choose(names, split, folder)
    if (folder / "state.json").is_file():
        yield from _saved_rows(folder)
        return
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise UserError(
            f"data folder {folder} holds neither a saved data set (state.json) nor Parquet files"
        )
    known = {name for names in _SPLIT_NAMES.values() for name in names}
    named = sorted({name for name in (file.stem.split("-")[0] for file in files) if name in known})
    if named:  # the hub's layout: data/train-00000-of-00002.parquet
        chosen = _choose(named, split, folder)
        files = [file for file in files if file.stem.split("-")[0] == chosen]
    for file in files:
        yield from read_parquet(file)


def _choose(names: Sequence[str], split: str, folder: Path) -> str:
    found = next((name for name in _SPLIT_NAMES.get(split, ()) if name in names), None)
    if found is None and len(names) == 1:
        return names[0]
    if found is None:
        raise UserError(f"data folder {folder} has no {split} split; it has {', '.join(names)}")
    return found


def _saved_rows(folder: Path) -> Iterator[tuple[str, Any]]:
    pyarrow = _pyarrow()
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise _missing("datasets") from error
    with _PictureStore(folder / "state.json") as pictures:
        try:
            data: Any = load_from_disk(str(folder)).with_format("arrow")
            batches = (batch for table in data.iter(_ROWS_AT_ONCE) for batch in table.to_batches())
            yield from _rows(batches, str(folder), pictures)
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            raise UserError(f"data folder {folder} cannot be read: {error}") from error


def _rows(batches: Any, place: str, pictures: _PictureStore) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            yield f"{place} row {number}", pictures.take(row)
            number += 1


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise _missing("pyarrow") from error
    return pa


def _missing(package: str) -> UserError:
    return UserError(f"this needs {package}, which is not installed: pip install 'vlmpeft[data]'")


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
        self._file: Any = None

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
        if self._path.is_file():
            return
        if self._file is None:
            import tempfile

            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False)  # noqa: SIM115
        self._file.write(content)
