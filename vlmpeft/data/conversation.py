"""The one record type: a conversation of messages, each of text and images in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Image:
    """A picture by reference; its bytes are read when it is opened.

    Args:
        source: an absolute path, or a `data:image/...;base64,` URI.
        offset: first byte of the picture in the file, for one inside a tar shard or a blob.
        size: how many bytes; None is the whole file.
        blank: opened as a grey picture of the same size, as a control.
        name: what the data calls it, which is the same on every machine.
    """

    source: str
    offset: int = 0
    size: int | None = None
    blank: bool = False
    name: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """Its name, or the beginning of its source."""
        return self.name or self.source[:80]


@dataclass(frozen=True)
class Message:
    """One turn: text and images in the order they are shown.

    Args:
        role: who says it.
        parts: text and images.
        loss: whether an assistant's turn is learnt and scored; one that is not is context.
        references: every accepted answer, for scoring; empty stands for the text alone.
    """

    role: Role
    parts: tuple[str | Image, ...]
    loss: bool = True
    references: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for part in self.parts if isinstance(part, Image))


@dataclass(frozen=True)
class Conversation:
    """Messages with at least one assistant turn.

    Args:
        id: the record's own id, or file name and position.
        messages: in order.
        place: where it was read from, for messages to the user.
        extra: the record's other fields, e.g. `kind`.
        is_row: made of a table's columns.
    """

    id: str
    messages: tuple[Message, ...]
    place: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    is_row: bool = False

    @cached_property
    def images(self) -> tuple[Image, ...]:
        return tuple(image for message in self.messages for image in message.images)

    @cached_property
    def assistant_turns(self) -> tuple[int, ...]:
        """Positions of the assistant's messages that are learnt and scored."""
        return tuple(
            i
            for i, message in enumerate(self.messages)
            if message.role == "assistant" and message.loss
        )
