"""The one record type: a conversation of messages, each of text and images in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Image:
    """A picture by reference: an absolute path, or a `data:image/...;base64,` URI."""

    source: str


@dataclass(frozen=True)
class Message:
    """One turn: text and images in the order they are shown."""

    role: Role
    parts: tuple[str | Image, ...]

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
    """

    id: str
    messages: tuple[Message, ...]
    place: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(image for message in self.messages for image in message.images)

    @property
    def assistant_turns(self) -> tuple[int, ...]:
        """Positions of the assistant's messages."""
        return tuple(i for i, message in enumerate(self.messages) if message.role == "assistant")
