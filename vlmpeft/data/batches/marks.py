"""Invisible marks in a text, which show where its places are once a processor has made tokens of it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from vlmpeft.runtime.errors import UserError

# They pass through the processor's own image expansion, whatever it is, and are taken out just before
# tokenization, where their positions become character spans: around each answer, and after each message.
START, END, MESSAGE_END = "\ue0f0", "\ue0f1", "\ue0f2"
_MARK = re.compile(f"[{START}{END}{MESSAGE_END}]")

Span = tuple[int, int]


def holds_mark(text: str) -> bool:
    return _MARK.search(text) is not None


def put_marks(text: str, spans: Iterable[Span], ends: Iterable[int] = ()) -> str:
    r"""The text with marks around spans and after messages.

    >>> put_marks("abcde", [(2, 4)]).encode("unicode_escape")
    b'ab\\ue0f0cd\\ue0f1e'
    """
    marks = [(end, 0, MESSAGE_END) for end in ends]
    for start, end in spans:
        marks += [(start, 2, START), (end, 1, END)]
    pieces, done = [], 0
    for place, _, mark in sorted(marks):
        pieces += [text[done:place], mark]
        done = place
    return "".join([*pieces, text[done:]])


def take_marks(marked: str) -> tuple[str, list[Span], list[int]]:
    r"""(text without marks, character spans that they enclose, characters at which messages end).

    >>> take_marks("ab\ue0f0cd\ue0f1e\ue0f2")
    ('abcde', [(2, 4)], [5])
    """
    places: dict[str, list[int]] = {START: [], END: [], MESSAGE_END: []}
    for number, match in enumerate(_MARK.finditer(marked)):
        places[match[0]].append(match.start() - number)
    spans = list(zip(places[START], places[END], strict=True))
    return _MARK.sub("", marked), spans, places[MESSAGE_END]


class MarkedTokenizer:
    """The real tokenizer, behind a stage that takes the marks out and remembers where they were."""

    def __init__(self, tokenizer: Any):
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} has no fast version, which labels by span need"
            )
        self._tokenizer = tokenizer
        self.spans: list[Span] = []
        self.message_ends: list[int] = []
        self.offsets = Offsets([])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str | list[str], **kwargs: Any) -> Any:
        if isinstance(text, str) and START not in text:
            return self._tokenizer(text, **kwargs)  # BLIP-2's processor: its image tokens, apart
        (marked,) = [text] if isinstance(text, str) else text
        clean, self.spans, self.message_ends = take_marks(marked)
        encoding = self._tokenizer([clean], **(kwargs | {"return_offsets_mapping": True}))
        offsets = encoding.pop("offset_mapping")[0]
        self.offsets = Offsets(offsets.tolist() if hasattr(offsets, "tolist") else offsets)
        return encoding


class QuestionTokenizer:
    """The tokenizer of a Q-Former, which may read what stands before the first answer and no answer."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: list[str], **kwargs: Any) -> Any:
        questions = [take_marks(one.partition(START)[0])[0] for one in text]
        return self._tokenizer(questions, **kwargs)


class Offsets:
    """Which characters each token stands for."""

    def __init__(self, offsets: Sequence[Span]):
        self._starts = [a for a, _ in offsets]
        self._ends = [b for _, b in offsets]
        self._rise = all(
            a <= b for values in (self._starts, self._ends) for a, b in pairwise(values)
        )

    def __len__(self) -> int:
        return len(self._ends)

    def overlapping(self, start: int, end: int) -> list[int]:
        """The tokens that end after `start` and begin before `end`; empty ones between two of them are among them.

        >>> Offsets([(0, 2), (2, 2), (2, 5), (5, 6)]).overlapping(1, 3)
        [0, 1, 2]
        """
        if self._rise:
            return [*range(bisect_right(self._ends, start), bisect_left(self._starts, end))]
        pairs = zip(self._starts, self._ends, strict=True)
        return [token for token, (a, b) in enumerate(pairs) if b > start and a < end]

    def ending_by(self, end: int) -> int:
        """How many tokens there are before the first that goes beyond a character."""
        if self._rise:
            return bisect_right(self._ends, end)
        return next((token for token, b in enumerate(self._ends) if b > end), len(self))
