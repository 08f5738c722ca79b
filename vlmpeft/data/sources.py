"""Where conversations come from: one reader for every kind of file, folder and record."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vlmpeft.data.chat import conversation_from_chat, holds_conversation
from vlmpeft.data.conversation import Conversation
from vlmpeft.data.files import TABLES, OnError, Records, read_json, read_table
from vlmpeft.data.rows import Columns, Recipe, check_target
from vlmpeft.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Source:
    """One data set of several.

    Args:
        path: file, folder or pattern (`shards/*.tar`): JSON, JSONL, CSV, TSV, Parquet, tar shards, or a folder
            of Parquet files or of Hugging Face `datasets`.
        weight: how often each conversation comes in an epoch: 2 is twice, 0.5 another random half each time.
        image_dir: what image paths are relative to; default data.image_dir.
        columns: of a table, what is what; default data.columns.
        prompt: of a table, the question as a template; default data.prompt.
        target: of a table, the answer; default data.target.
    """

    path: str
    weight: float = 1.0
    image_dir: str | None = None
    columns: Columns | None = None
    prompt: str | None = None
    target: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.weight, (int, float)) or not 0 < self.weight < float("inf"):
            raise UserError(f"weight {self.weight!r} of {self.path}: it is a number above 0")
        check_target(self.target)

    def recipe(self, default: Recipe) -> Recipe:
        """How its rows become conversations: its own settings over the common ones."""
        own = {name: getattr(self, name) for name in ("columns", "prompt", "target")}
        return replace(default, **{name: value for name, value in own.items() if value is not None})


def as_sources(value: str | Sequence[str | Mapping[str, Any]] | None) -> list[Source]:
    """The sources of `data.train` and the like: a path, or a list of paths and {path, weight, ...}.

    Raises:
        UserError: an unknown key, with the closest one that there is.
    """
    if value is None:
        return []
    entries = [value] if isinstance(value, str) else list(value)
    return [Source(entry) if isinstance(entry, str) else _build(Source, entry) for entry in entries]


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass from plain data."""
    names = [f.name for f in fields(cls)]
    if unknown := [key for key in values if key not in names]:
        raise UserError(
            f"a data source has no {unknown[0]!r}.{did_you_mean(str(unknown[0]), names)}"
        )
    if cls is Source and not isinstance(values.get("path"), str):
        raise UserError(f"a data source needs a path: {dict(values)}")
    plain = dict(values)
    if isinstance(columns := plain.get("columns"), Mapping):
        plain["columns"] = _build(Columns, columns)
    return cls(**plain)


def read_conversations(
    path: str,
    image_dir: str | None,
    on_error: OnError,
    recipe: Recipe | None = None,
    split: str = "train",
) -> list[Conversation]:
    """Every conversation of a file, a folder, or all files of a pattern.

    Args:
        path: as `Source.path`.
        image_dir: what image paths are relative to, else the file's folder.
        on_error: called with the error of each record that cannot be used.
        recipe: how rows of columns become conversations.
        split: which split of a folder that holds several.

    Raises:
        UserError: nothing there, not readable, or no usable conversation in it.
    """
    recipe, conversations = recipe or Recipe(), []
    for file in _expand(path):
        folder = Path(image_dir) if image_dir else (file if file.is_dir() else file.parent)
        for place, record in _records(file, split, on_error):
            try:
                conversations.append(_conversation(record, place, folder, recipe))
            except UserError as error:
                on_error(UserError(f"{place}: {error}"))
    if not conversations:
        raise UserError(f"data file {path} holds no usable conversation")
    return conversations


def _expand(path: str) -> list[Path]:
    if Path(path).exists():
        return [Path(path)]
    found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []  # noqa: PTH207  absolute patterns
    if not found:
        raise UserError(f"data file {path} does not exist")
    return [Path(file) for file in found]


def _records(file: Path, split: str, on_error: OnError) -> Records | Iterator[tuple[str, Any]]:
    if file.is_dir():
        from vlmpeft.data.arrow import read_dataset

        return read_dataset(file, split)
    if file.suffix == ".parquet":
        from vlmpeft.data.arrow import read_parquet

        return read_parquet(file)
    if file.suffix in (".tar", ".tgz") or file.name.endswith(".tar.gz"):
        from vlmpeft.data.shards import read_shard

        return read_shard(file)
    return (read_table if file.suffix in TABLES else read_json)(file, on_error)


def _conversation(record: Any, place: str, folder: Path, recipe: Recipe) -> Conversation:
    if isinstance(record, str):  # a shard's sample that could not be read
        raise UserError(record)
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"text that is not Unicode: {error.object[error.start]!r} alone") from error
    if not isinstance(record, dict):
        raise UserError(f"a conversation is an object, not {type(record).__name__}")
    if holds_conversation(record):
        conversation = conversation_from_chat(record, place, folder)
        choices = {"choices": recipe.choices} if recipe.choices else {}
        return replace(conversation, extra=choices | dict(conversation.extra))
    return recipe.conversation(record, place, folder)
