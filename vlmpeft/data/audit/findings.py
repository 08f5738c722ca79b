"""What is wrong with a data set, or may be: leaks, contradictions, repeats, pictures that look the same."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlmpeft.data.audit.near_duplicates import near_duplicates, signature
from vlmpeft.data.conversation import Conversation, Image
from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.images import open_image
from vlmpeft.runtime.errors import UserError

_COMPARED = 20_000  # pictures that are looked at for near duplicates

Splits = dict[str, list[Conversation]]


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Args:
        level: error makes `data check` fail, warning does not.
        text: what, how often.
        examples: places or ids.
        pictures: groups to look at.
    """

    level: str
    text: str
    examples: tuple[str, ...] = ()
    pictures: tuple[tuple[Image, ...], ...] = ()


def skipped(data: VLMData) -> list[Finding]:
    """What could not be used, by reason."""
    long = [line for line in data.skipped if line.endswith(" tokens")]
    broken = [line for line in data.skipped if not line.endswith(" tokens")]
    findings = []
    if broken:
        text = (
            f"{len(broken)} records cannot be used (a run stops, or skips them with data.on_error)"
        )
        findings.append(Finding("error", text, tuple(broken)))
    if long:
        text = f"{len(long)} conversations are longer than data.max_length={data.max_length}"
        findings.append(Finding("error", text, tuple(long)))
    return findings


def leaks(data: VLMData, splits: Splits) -> list[Finding]:
    """Images and conversations that are in train and in a split that scores it."""
    findings = []
    pictures = {name: _pictures(data, members) for name, members in splits.items()}
    texts = {
        name: {data.digests.conversation(c) for c in members} for name, members in splits.items()
    }
    for a, b in ((a, b) for a in splits for b in splits if _comes_before(a, b)):
        if same := texts[a] & texts[b]:
            findings.append(Finding("warning", f"{len(same)} conversations of {b} are also in {a}"))
        if shared := pictures[a].keys() & pictures[b].keys():
            examples = tuple(pictures[b][digest].label for digest in list(shared)[:5])
            text = f"{len(shared)} images of {b} are also in {a}"
            findings.append(Finding("warning", text, examples))
    return findings


def _comes_before(a: str, b: str) -> bool:
    order = ("train", "val", "test")
    return a in order and b in order and order.index(a) < order.index(b)


def _pictures(data: VLMData, conversations: Iterable[Conversation]) -> dict[bytes, Image]:
    """Content -> one of the images that have it."""
    return {
        digest: image
        for c in conversations
        for image in c.images
        if (digest := data.digests.image(image))
    }


def contradictions(data: VLMData, splits: Splits) -> list[Finding]:
    """Questions that are asked twice about the same pictures and answered differently."""
    findings = []
    for name, conversations in splits.items():
        answers: dict[Any, set[str]] = defaultdict(set)
        places: dict[Any, str] = {}
        for conversation in conversations:
            pictures = data.digests.images(conversation)
            for asked, turn in _questions(conversation):
                key = (pictures, asked)
                answers[key].add(conversation.messages[turn].text)
                places.setdefault(key, conversation.place)
        several = [key for key, texts in answers.items() if len(texts) > 1]
        if several:
            examples = tuple(f"{places[k]}: {sorted(answers[k])[:3]}" for k in several)
            text = (
                f"{name}: {len(several)} questions about the same pictures have different answers"
            )
            findings.append(Finding("warning", text, examples))
    return findings


def _questions(conversation: Conversation) -> Iterator[tuple[bytes, int]]:
    """(digest of all that is said before it, position) of each answer."""
    said, turns = hashlib.sha256(), set(conversation.assistant_turns)
    for number, message in enumerate(conversation.messages):
        if number in turns:
            yield said.digest(), number
        text = message.text.encode("utf-8", "surrogatepass")
        said.update(f"{message.role} {len(text)} ".encode() + text)


def repeats(data: VLMData, splits: Splits) -> list[Finding]:
    findings = []
    for name, conversations in splits.items():
        counts = Counter(data.digests.conversation(c) for c in conversations)
        if repeated := sum(count - 1 for count in counts.values()):
            findings.append(
                Finding("warning", f"{name}: {repeated} conversations repeat an earlier one")
            )
    return findings


def near_duplicate_pictures(data: VLMData, splits: Splits) -> list[Finding]:
    """Pictures that differ in content but look the same, as after another compression or size."""
    owner: dict[bytes, tuple[Image, str]] = {}
    for name, conversations in splits.items():
        for digest, image in _pictures(data, conversations).items():
            owner.setdefault(digest, (image, name))
    pictures = list(owner.values())
    if len(pictures) > _COMPARED:
        text = f"{len(pictures)} pictures: the first {_COMPARED} are compared for near duplicates"
        return [Finding("warning", text), *_alike(pictures[:_COMPARED])]
    return _alike(pictures)


def _alike(pictures: Sequence[tuple[Image, str]]) -> list[Finding]:
    signatures, known = [], []
    for image, name in pictures:
        try:
            signatures.append(signature(open_image(image, max_pixels=2**18)))
        except UserError:  # counted already
            continue
        known.append((image, name))
    groups = [[known[i] for i in group] for group in near_duplicates(signatures)]
    across = [group for group in groups if len({name for _, name in group}) > 1]
    within = [group for group in groups if len({name for _, name in group}) == 1]
    texts = (("in several splits", across), ("in one split", within))
    return [
        Finding(
            "warning",
            f"{len(found)} groups of pictures look (nearly) the same, {where}",
            _named(found),
            tuple(tuple(image for image, _ in group[:8]) for group in found),
        )
        for where, found in texts
        if found
    ]


def _named(groups: Sequence[Sequence[tuple[Image, str]]]) -> tuple[str, ...]:
    return tuple(
        ", ".join(f"{image.label} ({name})" for image, name in group[:4]) for group in groups
    )
