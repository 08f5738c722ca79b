"""Where in a rendered conversation each answer and each message stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

# It runs beside the template, in the process of `template_worker`: it imports nothing of weight.

# Characters that are no text. `_OPEN` and `_CLOSE` stand around what a message says.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
EXACT_MESSAGES = 16  # up to so many, every turn is found by rendering all that is before it
_NEW_FORMS = 32  # ways in which a template ends a turn that are each compared with the exact way

Chat = Sequence[dict[str, Any]]
Render = Callable[[Chat, bool], str]
Span = tuple[int, int]


class MovingTurnError(ValueError):
    """The template renders a turn differently once others follow."""


class TooLongError(ValueError):
    """The rendered text is longer than the limit."""


@dataclass(frozen=True)
class Located:
    """A rendered conversation.

    Args:
        text: all of it.
        spans: characters (start, end) of each answer that was asked for.
        ends: where each message ends, if that was asked for.
    """

    text: str
    spans: list[Span]
    ends: list[int]


def locate(render: Render, chat: Chat, turns: Sequence[int], *, with_ends: bool) -> Located:
    """Render a conversation and find answers in it, without searching for their text.

    An answer begins where the generation prompt of the messages before it ends, and ends where the
    rendering of the messages up to it ends. Rendering every prefix of a long conversation takes quadratic
    time. There, only the last messages before each place are rendered, and the result has to stand in the
    whole text at the marks of those messages; turns 1, 2, 4, 8, ..., the last one and each new way of
    ending a turn are found by the law itself as well. Where the two disagree, the law alone is used. What
    stays unseen is a template that ends a turn otherwise because of its number alone, at none of these.

    Args:
        render: messages and whether a generation prompt is added -> text.
        chat: messages as templates take them.
        turns: positions of the answers, rising.
        with_ends: whether to find the end of every message, too.

    Raises:
        MovingTurnError: the template does not keep the law.
    """
    text = render(chat, False)
    exact = _Exact(render, chat, text)
    near = _Near.of(render, chat, text) if len(chat) > EXACT_MESSAGES else None
    spans = near and _confirmed(near, exact, turns)
    if spans is None:
        near, spans = None, [exact.span(turn) for turn in turns]
    if any(end > start for (_, end), (start, _) in pairwise(spans)):
        raise MovingTurnError
    ends = [_end(near, exact, number) for number in range(1, len(chat) + 1)] if with_ends else []
    return Located(text, spans, ends)


def _confirmed(near: _Near, exact: _Exact, turns: Sequence[int]) -> list[Span] | None:
    """The answers as `near` finds them; None if `exact` finds one of them elsewhere."""
    spans, forms = [], set[tuple[str, str]]()
    for number, turn in enumerate(turns, 1):
        found = near.span(turn)
        is_new = found is not None and found.form not in forms and len(forms) < _NEW_FORMS
        is_checked = number & (number - 1) == 0 or number == len(turns)
        span = exact.span(turn) if found is None or is_new or is_checked else found.span
        if found is not None:
            if span != found.span:
                return None
            forms.add(found.form)
        spans.append(span)
    return spans


def _end(near: _Near | None, exact: _Exact, number: int) -> int:
    """Where the first `number` messages end in the whole text, as far as it goes on as they do."""
    found = near and near.reach(number, False)
    return found.end if found and found.is_said else exact.end(number)


class _Exact:
    """The law: every place is found by rendering all the messages before it."""

    def __init__(self, render: Render, chat: Chat, text: str):
        self._render, self._chat, self._text = render, chat, text

    def span(self, turn: int) -> Span:
        before = self._render(self._chat[:turn], True)
        is_last = turn + 1 == len(self._chat)
        until = self._text if is_last else self._render(self._chat[: turn + 1], False)
        if not (until.startswith(before) and self._text.startswith(until)):
            raise MovingTurnError
        return len(before), len(until)

    def end(self, number: int) -> int:
        return _agreement(self._render(self._chat[:number], False), self._text)


class _Reach(NamedTuple):
    """Where the rendering of the first messages ends in the whole text, as far as the two agree.

    Args:
        end: a character of the whole text.
        is_whole: whether they agree up to the end.
        is_said: whether they do so at least up to the end of what the last message says.
        tail: what follows that.
    """

    end: int
    is_whole: bool
    is_said: bool
    tail: str


class _Found(NamedTuple):
    span: Span
    form: tuple[str, str]


class _Near:
    """The fast way: the last messages alone are rendered and fitted into the whole text.

    Marks in one rendering of everything show where in the text each message says what it says. A template
    that repeats, drops, reorders or cuts what messages say has no fast way.
    """

    def __init__(self, render: Render, chat: Chat, text: str, said: dict[int, Span]):
        self._render, self._chat, self._text, self._said = render, chat, text, said
        self._system = list(chat[:1]) if chat[0]["role"] == "system" else []
        self._starts, self._lead = self._window_starts(), ""

    @classmethod
    def of(cls, render: Render, chat: Chat, text: str) -> _Near | None:
        """None if the marks do not all come out once and in order, or change anything else."""
        marked = [_marked(message) for message in chat]
        marked_text = _attempt(render, marked, False)
        if marked_text is None or _MARKS.sub("", marked_text) != text:
            return None
        speaking = [n for n, message in enumerate(chat) if marked[n] is not message]
        marks = list(_MARKS.finditer(marked_text))
        if [mark[0] for mark in marks] != [_OPEN, _CLOSE] * len(speaking):
            return None
        places = [mark.start() - n for n, mark in enumerate(marks)]
        spans = zip(places[::2], places[1::2], strict=True)
        return cls(render, chat, text, dict(zip(speaking, spans, strict=True)))

    def _window_starts(self) -> list[int | None]:
        """For each number of messages, the last of the user's that says something, if not too far back."""
        starts, last = list[int | None]([None]), None
        for number, message in enumerate(self._chat, 1):
            if message["role"] == "user" and number - 1 in self._said:
                last = number - 1
            is_close = last is not None and number - last <= EXACT_MESSAGES
            starts.append(last if is_close else None)
        return starts

    def span(self, turn: int) -> _Found | None:
        before, until = self.reach(turn, True), self.reach(turn + 1, False)
        if before is None or until is None or not (before.is_whole and until.is_whole):
            return None
        if before.end > until.end:
            return None
        return _Found((before.end, until.end), (before.tail, until.tail))

    def reach(self, number: int, add_generation_prompt: bool) -> _Reach | None:
        """Where the rendering of the first `number` messages ends; None if that cannot be said."""
        start = self._starts[number]
        if start is None:
            return None
        window = [*(self._system if start else ()), *self._chat[start:number]]
        text = _attempt(self._render, window, add_generation_prompt)
        if text is None:
            return None
        place = self._said[start][0]
        if not (text.startswith(self._lead) and self._fits(text, place)):
            self._lead = self._find_lead(window, add_generation_prompt)
        said = text[len(self._lead) :]
        end = place + _agreement(said, self._text[place : place + len(said)])
        last = next(n for n in range(number - 1, -1, -1) if n in self._said)
        tail_start = self._said[last][1]
        is_said = last == number - 1 and end >= tail_start
        return _Reach(end, self._fits(text, place), is_said, self._text[tail_start:end])

    def _fits(self, text: str, place: int) -> bool:
        """Whether what a rendering has after the lead stands at a place in the whole text."""
        return self._text.startswith(text[len(self._lead) :], place)

    def _find_lead(self, window: Chat, add_generation_prompt: bool) -> str:
        """What stands in the rendering of some messages before the first of the user's says something."""
        marked = [m if m["role"] == "system" else _marked(m) for m in window]
        text = _attempt(self._render, marked, add_generation_prompt) or ""
        return text.partition(_OPEN)[0]


def _marked(message: dict[str, Any]) -> dict[str, Any]:
    """The message with marks around its text, inside of white space that a template may trim."""
    content = [dict(part) for part in message["content"]]
    texts = [part for part in content if part.get("text", "").strip()]
    if not texts:
        return message
    texts[0]["text"] = re.sub(r"\S", lambda first: _OPEN + first[0], texts[0]["text"], count=1)
    last = texts[-1]["text"]
    kept = last.rstrip()
    texts[-1]["text"] = kept + _CLOSE + last[len(kept) :]
    return message | {"content": content}


def _attempt(render: Render, chat: Chat, add_generation_prompt: bool) -> str | None:
    try:
        return render(chat, add_generation_prompt)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever a template does to a part, the whole decides
        return None


def _agreement(one: str, other: str) -> int:
    """How many characters two texts have in common from the start on."""
    if other.startswith(one):
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), len(other))
