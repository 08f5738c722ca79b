"""Records that hold a conversation: LLaVA's `conversations` and OpenAI-style `messages`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmpeft.data.conversation import Conversation, Image, Message, Role
from vlmpeft.data.formats.values import is_missing, kept, printable, shown
from vlmpeft.runtime.errors import UserError

PLACEHOLDER = "<image>"
KEYS = ("conversations", "messages")
_OWN_KEYS = ("id", "image", "images", "references", "answers")
ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}


def holds_conversation(record: Any) -> bool:
    """Whether a record is a conversation, not a row of columns."""
    return isinstance(record, dict) and any(record.get(key) is not None for key in KEYS)


def conversation_from_chat(record: dict[str, Any], place: str, folder: Path) -> Conversation:
    """The conversation of a record with `conversations` or `messages`.

    A turn may have `loss: false` (or OpenAI's `weight: 0`), which makes it context, and `references`: every
    accepted answer. `references` or `answers` of the record itself belong to the last answer.

    Args:
        record: `image` or `images` are what `<image>` in the text stands for, in order.
        place: where it stands, for messages.
        folder: what image paths are relative to.

    Raises:
        UserError: what is wrong with the record, without its place.
    """
    key = next((key for key in KEYS if record.get(key)), None)
    if key is None:
        raise UserError("no 'conversations' and no 'messages', or an empty one")
    if not isinstance(record[key], list):
        raise UserError(f"{key!r} is a list of turns, not {type(record[key]).__name__}")
    waiting = listed_images(record.get("images") or record.get("image") or [], folder)
    listed = len(waiting)
    messages = [_message(turn, waiting, folder) for turn in record[key]]
    inline = sum(len(message.images) for message in messages) - (listed - len(waiting))
    if waiting:
        shown = listed - len(waiting)
        raise UserError(f"{listed} image(s) given but {shown + inline} {PLACEHOLDER} in the text")
    references = accepted_answers(record.get("references") or record.get("answers"))
    if references and messages and messages[-1].role == "assistant":
        messages[-1] = replace(messages[-1], references=references)
    identity = record.get("id")
    conversation = Conversation(
        id=Path(place).name if is_missing(identity) else printable(str(identity)),
        messages=tuple(messages),
        place=place,
        extra=kept({k: v for k, v in record.items() if k not in (key, *_OWN_KEYS)}),
    )
    check_turns(conversation)
    return conversation


def accepted_answers(value: Any) -> tuple[str, ...]:
    """Every answer of a value: a text, a number, or a list of those or of objects with `answer` or `text`.

    >>> accepted_answers([{"answer": "red", "answer_id": 1}, {"answer": "dark red", "answer_id": 2}])
    ('red', 'dark red')
    """
    if value is None or value != value:  # null and NaN are empty cells
        return ()
    if isinstance(value, (str, int, float)):
        return (str(value),)
    if isinstance(value, list):
        return tuple(text for entry in value for text in accepted_answers(entry))
    if isinstance(value, dict) and ("answer" in value or "text" in value):
        return accepted_answers(value.get(_first(value, "answer", "text")))
    raise UserError(f"an answer is a text or a list of texts, not {shown(value)}")


def _first(record: dict[str, Any], *keys: str) -> str | None:
    """The first of the keys that has a value: Arrow gives a record every key, and null to those it lacks."""
    return next((key for key in keys if record.get(key) is not None), None)


def listed_images(value: Any, folder: Path) -> list[Image]:
    """The images of a value: one or a list of paths, data URIs, ready Images or parts that hold one."""
    values = [value] if isinstance(value, (str, dict, Image)) else value
    if not isinstance(values, list):
        raise UserError(f"'image' is a path or a list of paths, not {type(values).__name__}")
    return [v if isinstance(v, Image) else _locate(_source(v), folder) for v in values]


def _source(value: Any) -> str:
    """The path, URL or data URI in any of the ways image parts are written."""
    if isinstance(value, dict):
        value = next(
            (value[key] for key in ("url", "path", "image", "source") if value.get(key)), None
        )
    if not isinstance(value, str) or not value:
        raise UserError(f"an image is a path or a data URI, not {shown(value)}")
    return value


def _locate(source: str, folder: Path) -> Image:
    if source.startswith("data:"):
        return Image(source)
    if source.startswith(("http://", "https://")):
        raise UserError(
            f"image {shown(source)}: download it first; URLs are not fetched while training"
        )
    return Image(str(folder / source.removeprefix("file://")), name=printable(source))


def _message(turn: Any, waiting: list[Image], folder: Path) -> Message:
    """One turn; takes the images of its placeholders from the front of `waiting`."""
    if not isinstance(turn, dict):
        raise UserError(f"a turn is an object, not {type(turn).__name__}")
    said = turn.get(_first(turn, "from", "role") or "role", "")
    if not isinstance(said, str) or said not in ROLES:
        raise UserError(f"turn from {shown(said)}; it is one of {', '.join(ROLES)}")
    return Message(
        ROLES[said],
        _parts(turn.get(_first(turn, "value", "content") or "content"), waiting, folder),
        loss=_learnt(turn),
        references=accepted_answers(turn.get("references")),
    )


def _learnt(turn: dict[str, Any]) -> bool:
    """`loss` of a turn, or OpenAI's `weight`."""
    key = _first(turn, "loss", "weight")
    if key and turn[key] not in (True, False):  # 0 and 1 are among them
        raise UserError(f"{key!r} of a turn is true or false, not {shown(turn[key])}")
    return key is None or bool(turn[key])


def _parts(content: Any, waiting: list[Image], folder: Path) -> tuple[str | Image, ...]:
    if isinstance(content, str):
        return split_placeholders(content, waiting)
    if not isinstance(content, list):
        raise UserError(
            f"the content of a turn is text or a list of parts, not {type(content).__name__}"
        )
    return tuple(piece for part in content for piece in _content_part(part, waiting, folder))


def _content_part(part: Any, waiting: list[Image], folder: Path) -> tuple[str | Image, ...]:
    """One OpenAI-style part. Arrow adds null keys to parts: they are ignored."""
    if isinstance(part, str):
        return split_placeholders(part, waiting)
    present = (
        {key: value for key, value in part.items() if value is not None}
        if isinstance(part, dict)
        else {}
    )
    kind = present.get("type")
    if kind == "text" or ("text" in present and kind is None):
        return split_placeholders(_text(present.get("text", "")), waiting)
    source = next(
        (present[key] for key in ("image_url", "image", "path", "url") if key in present), None
    )
    if isinstance(source, Image):
        return (source,)
    if source is not None:
        return (_locate(_source(source), folder),)
    if kind == "image":
        return (_take(waiting),)
    raise UserError(f"content part {shown(part)} is neither text nor an image")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"the text of a content part is not text: {shown(value)}")
    return value


def split_placeholders(text: str, waiting: list[Image]) -> tuple[str | Image, ...]:
    """Text and images, which are taken from the front of `waiting`, around `<image>` marks; a line break beside a mark belongs to the mark."""
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


def check_turns(conversation: Conversation) -> None:
    """Refuse a conversation there is nothing to learn from.

    Raises:
        UserError: no answer, all of them `loss: false`, no question before the first, an empty one.
    """
    turns = conversation.assistant_turns
    if not turns and any(message.role == "assistant" for message in conversation.messages):
        raise UserError("every assistant turn has loss: false: there is nothing to learn from it")
    if not turns:
        raise UserError("no assistant turn: there is nothing to learn from it")
    if turns[0] == 0:
        raise UserError("the first turn is the assistant's: there is no question")
    empty = [turn for turn in turns if not conversation.messages[turn].text.strip()]
    if empty:
        raise UserError(f"turn {empty[0]} is an empty answer")
