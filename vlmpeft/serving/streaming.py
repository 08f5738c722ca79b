"""An answer shown while it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Stream:
    """A streamer for `generate`: shows text as soon as no later token can change it.

    Args:
        tokenizer: turns ids into text.
        show: is given each new piece.
    """

    def __init__(self, tokenizer: Any, show: Callable[[str], None]):
        self._tokenizer, self._show = tokenizer, show
        self._ids: list[int] | None = None
        self._shown = ""

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then a token at a time."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        self._advance(self._read(self._ids).rstrip("\ufffd").rstrip())

    def end(self) -> None:
        """`finish` shows the rest: it knows where the answer was cut."""

    def finish(self, ids: list[int]) -> str:
        """Show what is still missing of the whole answer, and return that."""
        text = self._read(ids)
        if not text.startswith(self._shown):  # a tokenizer that rewrites what it has decoded
            self._show("\n")
            self._shown = ""
        self._advance(text)
        return text

    def _read(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _advance(self, text: str) -> None:
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._show(text[len(self._shown) :])
            self._shown = text
