"""Where conversations come from: one reader for every kind of file, folder and record."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vlmpeft.data.conversation import Conversation
from vlmpeft.data.formats.chat_records import conversation_from_chat, holds_conversation
from vlmpeft.data.formats.files import TABLES, OnError, read_json, read_table
from vlmpeft.data.formats.limits import check_regular, real_path
from vlmpeft.data.formats.rows import Columns, Recipe, check_target
from vlmpeft.data.formats.values import shown
from vlmpeft.runtime.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Source:
    """One data set of several.

    Args:
        path: file, folder or pattern (`shards/*.tar`): JSON, JSONL, CSV, TSV, Parquet, tar shards, or a folder
            of Parquet files or of Hugging Face `datasets`.
        weight: how often each conversation comes in an epoch: 2 is twice, 0.5 half of them, the halves in turns.
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
        is_number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not is_number or not 0 < self.weight < float("inf"):
            raise UserError(f"weight {self.weight!r} of {self.path}: it is a number above 0")
        for key in ("image_dir", "prompt"):
            if not isinstance(value := getattr(self, key), str | None):
                raise UserError(f"{key} of {self.path} is text, not {shown(value)}")
        if not isinstance(self.columns, Columns | None):
            raise UserError(
                f"columns of {self.path} are {{image: COLUMN, ...}}, not {self.columns}"
            )
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
    if not isinstance(values, Mapping):
        raise UserError(
            f"a data source is a path or {{path: ..., weight: ...}}, not {shown(values)}"
        )
    names = [f.name for f in fields(cls)]
    if unknown := [key for key in values if key not in names]:
        raise UserError(
            f"a data source has no {unknown[0]!r}.{did_you_mean(str(unknown[0]), names)}"
        )
    if cls is Source and not isinstance(values.get("path"), str):
        raise UserError(f"a data source needs a path: {shown(dict(values))}")
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
    *,
    allow_outside: bool = True,
) -> list[Conversation]:
    """Every conversation of a file, a folder, or all files of a pattern.

    Args:
        path: as `Source.path`.
        image_dir: what image paths are relative to, else the file's folder.
        on_error: called with the error of each record that cannot be used.
        recipe: how rows of columns become conversations.
        split: which split of a folder that holds several.
        allow_outside: whether image paths may lead out of image_dir.

    Raises:
        UserError: nothing there, not readable, or no usable conversation in it.
    """
    recipe, refused = recipe or Recipe(), list[UserError]()

    def refuse(error: UserError) -> None:
        refused.append(error)
        on_error(error)

    conversations = [
        conversation
        for file in _expand(path)
        for conversation in _read_file(file, image_dir, refuse, recipe, split, allow_outside)
    ]
    if conversations and recipe.is_given and not any(c.is_row for c in conversations):
        raise UserError(
            f"data file {path} holds conversations: data.columns, data.prompt and data.target have no effect on it; "
            "give them to the sources they are for: data.train: [{path, columns, prompt, target}, ...]"
        )
    if not conversations:
        why = f"; of {len(refused)} errors the first: {refused[0]}" if refused else ""
        raise UserError(f"data file {path} holds no usable conversation{why}")
    return conversations


def _read_file(
    file: Path,
    image_dir: str | None,
    on_error: OnError,
    recipe: Recipe,
    split: str,
    allow_outside: bool,
) -> Iterator[Conversation]:
    folder = Path(image_dir) if image_dir else (file if file.is_dir() else file.parent)
    # closed at once when an error stops it: it may be writing pictures to the cache
    with contextlib.closing(_records(file, split, on_error)) as records:
        for place, record in records:
            try:
                conversation = _conversation(record, place, folder, recipe)
                if not allow_outside:
                    _check_inside(conversation, folder)
                yield conversation
            except UserError as error:
                on_error(UserError(f"{place}: {error}"))
            except RecursionError:
                on_error(UserError(f"{place}: nested too deeply"))


def _check_inside(conversation: Conversation, folder: Path) -> None:
    """Refuse pictures that lie outside of the folder once every link is followed.

    One with a size is a part of the data file itself, or of what was copied out of it into the cache.
    """
    inside = real_path(folder)
    for image in conversation.images:
        if image.source.startswith("data:") or image.size is not None:
            continue
        if not real_path(image.source).is_relative_to(inside):
            raise UserError(
                f"image {shown(image.label)} lies outside of image_dir {folder}: copy it there, or set "
                "data.allow_outside: true if you trust the data"
            )


def _expand(path: str) -> list[Path]:
    try:
        if Path(path).exists():
            return [Path(path)]
    except (OSError, ValueError) as error:  # too long, or with a NUL
        why = getattr(error, "strerror", None) or error
        raise UserError(f"data file {shown(path)} cannot be opened: {why}") from error
    found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []  # noqa: PTH207  absolute patterns
    if not found:
        raise UserError(f"data file {path} does not exist")
    return [Path(file) for file in found]


def _records(file: Path, split: str, on_error: OnError) -> Generator[tuple[str, Any]]:
    if file.is_dir():
        from vlmpeft.data.formats.arrow import read_dataset

        return read_dataset(file, split)
    check_regular(file)
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        from vlmpeft.data.formats.arrow import read_parquet

        return read_parquet(file)
    if suffix in (".tar", ".tgz") or file.name.lower().endswith(".tar.gz"):
        from vlmpeft.data.formats.shards import read_shard

        return read_shard(file)
    return (read_table if suffix in TABLES else read_json)(file, on_error)


def _conversation(record: Any, place: str, folder: Path, recipe: Recipe) -> Conversation:
    if isinstance(record, UserError):  # a sample that could not be read
        raise record
    if not isinstance(record, dict):
        raise UserError(f"a conversation is an object, not {type(record).__name__}")
    if not holds_conversation(record):
        return _checked(recipe.conversation(record, place, folder))
    conversation = conversation_from_chat(record, place, folder)
    choices = {"choices": recipe.choices} if recipe.choices else {}
    return _checked(replace(conversation, extra=choices | dict(conversation.extra)))


def _checked(conversation: Conversation) -> Conversation:
    """Refuse text that no tokenizer takes: half of a surrogate pair, as in a damaged emoji."""
    for message in conversation.messages:
        for text in (*message.parts, *message.references):
            if isinstance(text, str) and (alone := re.search("[\ud800-\udfff]", text)):
                raise UserError(f"text that is not Unicode: {alone.group()!r} alone")
    return conversation
