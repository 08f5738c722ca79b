r"""Texts from elsewhere on a terminal: characters that would act on it are shown as their escapes.

A picture may be called "\x1b]0;...\x07": printed as it is, it would set the window's title, or worse. So whatever
vlmpeft prints goes through here: single lines through `visible`, tables through `terminal_console`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.segment import Segment

# C0 but tab and line feed, DEL, C1, halves of surrogate pairs, and what turns the direction of what follows
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text with every character that acts on a terminal as its escape.

    >>> visible("a\x1b[31mb\u202ec")
    'a\\x1b[31mb\\u202ec'
    """
    return _ACTING.sub(lambda found: _escape(found.group()), text)


def visible_json(text: str) -> str:
    """JSON that means the same, with those characters as JSON's own escapes."""
    return _ACTING.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


class _VisibleConsole(Console):
    """A console on which only rich's own styles act."""

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _ACTING.search(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


def terminal_console(*, stderr: bool = False) -> Console:
    """Where tables and lines are printed: no markup, no emoji, nothing in a text that acts on the terminal."""
    return _VisibleConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
