"""Conversations token by token: whose turn each is, which are learnt, where pictures stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vlmpeft.data.batches.encode import IGNORE, Encoded, Encoder
from vlmpeft.data.conversation import Conversation

_SHOWN = 4096  # rows of a conversation that are shown
_CHECKED = 200  # conversations whose labels are checked against their text


@dataclass(frozen=True)
class TokenRow:
    """One token, or a run of image tokens.

    Args:
        position: of the first.
        count: how many; above 1 for image tokens alone.
        text: as the tokenizer decodes it.
        role: whose message it belongs to.
        is_learnt: whether it is in the loss.
        is_image: whether a picture stands there.
    """

    position: int
    count: int
    text: str
    role: str
    is_learnt: bool
    is_image: bool


@dataclass(frozen=True)
class TokenView:
    """A conversation as the model sees it.

    Args:
        id: of the conversation.
        place: where it was read from.
        images: labels of its pictures.
        rows: its tokens, up to a number.
        hidden: how many tokens there are beyond.
    """

    id: str
    place: str
    images: tuple[str, ...]
    rows: tuple[TokenRow, ...]
    hidden: int = 0


def view_tokens(encoder: Encoder, conversations: Sequence[Conversation]) -> list[TokenView]:
    """Each conversation's tokens with role, label and image spans."""
    views = []
    for conversation in conversations:
        encoded, ends = encoder.encode_with_ends(conversation)
        images = tuple(image.label for image in conversation.images)
        roles = _roles(conversation, encoded, ends)
        rows = tuple(islice(_rows(encoder, encoded, roles), _SHOWN))
        hidden = len(encoded) - sum(row.count for row in rows)
        views.append(TokenView(conversation.id, conversation.place, images, rows, hidden))
    return views


def _roles(conversation: Conversation, encoded: Encoded, ends: Sequence[int]) -> list[str]:
    """Whose message each token belongs to: where the rendering of the messages up to it ends."""
    roles: list[str] = []
    for message, end in zip(conversation.messages, ends, strict=True):
        roles += [message.role] * (end - len(roles))
    return roles + ["template"] * (len(encoded) - len(roles))


def _rows(encoder: Encoder, encoded: Encoded, roles: Sequence[str]) -> Iterator[TokenRow]:
    ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
    decode, image = encoder.processor.tokenizer.decode, encoder.image_token_id
    position = 0
    while position < len(ids):
        count = 1
        while (
            ids[position] == image
            and position + count < len(ids)
            and ids[position + count] == image
        ):
            count += 1
        yield TokenRow(
            position,
            count,
            decode([ids[position]]),
            roles[position],
            labels[position] != IGNORE,
            ids[position] == image,
        )
        position += count


def check_labels(encoder: Encoder, conversations: Sequence[Conversation]) -> list[tuple[str, str]]:
    """(place, what is wrong) where the supervised tokens are not exactly the answers and their ends.

    The answers are compared with the decoded labels, so that this does not depend on how spans were found.
    """
    wrong = []
    for conversation in conversations[:_CHECKED]:
        encoded = encoder.encode(conversation)
        if reason := _mislabelled(encoder, conversation, encoded):
            wrong.append((conversation.place, reason))
    return wrong


def _mislabelled(encoder: Encoder, conversation: Conversation, encoded: Encoded) -> str | None:
    learnt = [n for n, label in enumerate(encoded.labels.tolist()) if label != IGNORE]
    runs = _runs(learnt)
    answers = [conversation.messages[turn].text for turn in conversation.assistant_turns]
    if len(runs) != len(answers):
        return f"{len(runs)} supervised spans for {len(answers)} answers"
    if encoder.image_token_id in encoded.labels.tolist():
        return "an image token is supervised"
    for (start, end), answer in zip(runs, answers, strict=True):
        ids = encoded.input_ids[start:end].tolist()
        if ids[-1] not in encoder.end_token_ids:
            return f"the end token of the answer {answer[:40]!r} is not supervised"
        while ids and ids[-1] in encoder.end_token_ids:
            ids.pop()
        said = encoder.processor.tokenizer.decode(ids)
        if _squeezed(said) != _squeezed(answer):
            return f"what is supervised is {said[:60]!r}, not the answer {answer[:60]!r}"
    return None


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of every run of neighbours.

    >>> _runs([3, 4, 7])
    [(3, 5), (7, 8)]
    """
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        else:
            runs.append((position, position + 1))
    return runs


def _squeezed(text: str) -> str:
    """Without white space, which tokenizers add and remove at borders."""
    return "".join(text.split())
