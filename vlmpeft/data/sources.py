"""Reading annotation files: LLaVA `conversations` and OpenAI-style `messages`, JSON and JSONL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmpeft.data.conversation import Conversation, Image, Message, Role
from vlmpeft.errors import UserError

PLACEHOLDER = "<image>"
ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}

# called with each record's error; raises, or counts it and goes on
OnError = Callable[[UserError], None]


def read_conversations(path: str, image_dir: str | None, on_error: OnError) -> list[Conversation]:
    """Every conversation of one file; images are relative to `image_dir`, else to the file's folder.

    Raises:
        UserError: a file that is missing, is not JSON, or holds no conversation.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"data file {path} does not exist")
    folder = Path(image_dir) if image_dir else file.parent
    conversations = []
    for place, record in _records(file, on_error):
        try:
            conversations.append(_conversation(record, place, folder))
        except UserError as error:
            on_error(UserError(f"{place}: {error}"))
    if not conversations:
        raise UserError(f"data file {path} holds no usable conversation")
    return conversations


def _records(file: Path, on_error: OnError) -> Iterator[tuple[str, Any]]:
    """(place, record) of a JSON list or of JSON lines, whatever the file is called."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"data file {file} cannot be read as UTF-8 text: {error}") from error
    if file.suffix != ".jsonl" and not text.lstrip().startswith("{"):
        yield from _json_list(file, text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            on_error(
                UserError(f"{file}:{number}: not valid JSON: {error.msg} (column {error.colno})")
            )
            continue
        yield f"{file}:{number}", record


def _json_list(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})"
        ) from error
    if not isinstance(records, list):
        raise UserError(
            f"data file {file} must hold a list of conversations, not {type(records).__name__}"
        )
    for number, record in enumerate(records):
        yield f"{file} record {number}", record


def _conversation(record: Any, place: str, folder: Path) -> Conversation:
    if not isinstance(record, dict):
        raise UserError(f"a conversation is an object, not {type(record).__name__}")
    key = next((key for key in ("conversations", "messages") if record.get(key)), None)
    if key is None:
        raise UserError("no 'conversations' and no 'messages', or an empty one")
    if not isinstance(record[key], list):
        raise UserError(f"{key!r} is a list of turns, not {type(record[key]).__name__}")
    waiting = [_locate(source, folder) for source in _listed_images(record)]
    listed = len(waiting)
    messages = tuple(_message(turn, waiting, folder) for turn in record[key])
    inline = sum(len(message.images) for message in messages) - (listed - len(waiting))
    if waiting:
        shown = listed - len(waiting)
        raise UserError(f"{listed} image(s) given but {shown + inline} {PLACEHOLDER} in the text")
    conversation = Conversation(
        id=str(record.get("id", Path(place).name)),
        messages=messages,
        place=place,
        extra={k: v for k, v in record.items() if k not in (key, "id", "image", "images")},
    )
    _check_turns(conversation)
    return conversation


def _listed_images(record: dict[str, Any]) -> list[str]:
    value = record.get("images") or record.get("image") or []
    sources = [value] if isinstance(value, (str, dict)) else value
    if not isinstance(sources, list):
        raise UserError(f"'image' is a path or a list of paths, not {type(sources).__name__}")
    return [_source(source) for source in sources]


def _source(value: Any) -> str:
    """The path, URL or data URI in any of the ways image parts are written."""
    if isinstance(value, dict):
        value = next(
            (value[key] for key in ("url", "path", "image", "source") if value.get(key)), None
        )
    if not isinstance(value, str) or not value:
        raise UserError(f"an image is a path or a data URI, not {value!r}")
    return value


def _locate(source: str, folder: Path) -> Image:
    if source.startswith("data:"):
        return Image(source)
    if source.startswith(("http://", "https://")):
        raise UserError(f"image {source}: download it first; URLs are not fetched while training")
    return Image(str(folder / source.removeprefix("file://")))


def _message(turn: Any, waiting: list[Image], folder: Path) -> Message:
    """One turn; takes the images of its placeholders from the front of `waiting`."""
    if not isinstance(turn, dict):
        raise UserError(f"a turn is an object, not {type(turn).__name__}")
    said = str(turn.get("from", turn.get("role", "")))
    if said not in ROLES:
        raise UserError(f"turn from {said!r}; it is one of {', '.join(ROLES)}")
    content = turn.get("value", turn.get("content"))
    if isinstance(content, str):
        return Message(ROLES[said], _split_placeholders(content, waiting))
    if not isinstance(content, list):
        raise UserError(
            f"the content of a turn is text or a list of parts, not {type(content).__name__}"
        )
    parts = [piece for part in content for piece in _content_part(part, waiting, folder)]
    return Message(ROLES[said], tuple(parts))


def _content_part(part: Any, waiting: list[Image], folder: Path) -> tuple[str | Image, ...]:
    """One OpenAI-style part. Arrow adds null keys to parts: they are ignored."""
    if isinstance(part, str):
        return _split_placeholders(part, waiting)
    present = (
        {key: value for key, value in part.items() if value is not None}
        if isinstance(part, dict)
        else {}
    )
    kind = present.get("type")
    if kind == "text" or ("text" in present and kind is None):
        return _split_placeholders(str(present.get("text", "")), waiting)
    source = next(
        (present[key] for key in ("image_url", "image", "path", "url") if key in present), None
    )
    if source is not None:
        return (_locate(_source(source), folder),)
    if kind == "image":
        return (_take(waiting),)
    raise UserError(f"content part {part!r} is neither text nor an image")


def _split_placeholders(text: str, waiting: list[Image]) -> tuple[str | Image, ...]:
    """Text around `<image>` marks; a line break beside a mark belongs to the mark."""
    pieces = text.split(PLACEHOLDER)
    parts: list[str | Image] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append(_take(waiting))
            piece = piece.removeprefix("\n")
        if number < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece:
            parts.append(piece)
    return tuple(parts)


def _take(waiting: list[Image]) -> Image:
    if not waiting:
        raise UserError(f"more {PLACEHOLDER} in the text than images given")
    return waiting.pop(0)


def _check_turns(conversation: Conversation) -> None:
    turns = conversation.assistant_turns
    if not turns:
        raise UserError("no assistant turn: there is nothing to learn from it")
    if turns[0] == 0:
        raise UserError("the first turn is the assistant's: there is no question")
    empty = [turn for turn in turns if not conversation.messages[turn].text.strip()]
    if empty:
        raise UserError(f"turn {empty[0]} is an empty answer")
