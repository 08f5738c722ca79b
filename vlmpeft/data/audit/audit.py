"""What there is to know about a data set before anything is trained on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vlmpeft.data.audit.findings import (
    Finding,
    contradictions,
    leaks,
    near_duplicate_pictures,
    repeats,
    skipped,
)
from vlmpeft.data.audit.json_targets import check_targets
from vlmpeft.data.batches.token_view import TokenView, check_labels, view_tokens
from vlmpeft.data.conversation import Conversation
from vlmpeft.data.datamodule import VLMData

_BINS = 10


@dataclass(frozen=True)
class SplitAudit:
    """One split in numbers.

    Args:
        conversations: that can be used.
        answers: assistant turns that are learnt or scored.
        images: pictures shown, each time they are.
        distinct_images: by content.
        text_only: conversations without a picture.
        lengths: minimum, median, 95 % and maximum of tokens, image tokens included.
        histogram: (from, to, conversations) in bins of tokens.
        image_share: of all tokens.
        supervised_share: of all tokens.
        distinct_answers: different texts among the answers.
        commonest: the most frequent answers and how often they come.
    """

    conversations: int
    answers: int
    images: int
    distinct_images: int
    text_only: int
    lengths: tuple[int, int, int, int]
    histogram: list[tuple[int, int, int]]
    image_share: float
    supervised_share: float
    distinct_answers: int
    commonest: list[tuple[str, int]]


@dataclass(frozen=True)
class Audit:
    """Everything `data check` shows."""

    splits: dict[str, SplitAudit]
    findings: list[Finding]
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[TokenView] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]


def audit(data: VLMData, schema: dict[str, Any] | None = None) -> Audit:
    """Look at every split that was prepared.

    Args:
        data: prepared with on_error "skip" and over_length "drop", so that nothing stops at the first.
        schema: JSON Schema of the answers, if they are JSON.
    """
    names = data.prepared()
    conversations = {name: data.conversations(name) for name in names}
    findings = [
        *skipped(data),
        *leaks(data, conversations),
        *contradictions(data, conversations),
    ]
    findings += [*repeats(data, conversations), *near_duplicate_pictures(data, conversations)]
    for name in names:
        findings += [
            Finding("error", f"{name}: {text}", examples)
            for text, examples in check_targets(conversations[name], schema)
        ]
    first = names[0]
    findings += [
        Finding("error", text, (place,))
        for place, text in check_labels(data.encoder, conversations[first])
    ]
    return Audit(
        {name: _split_audit(data, name) for name in names},
        findings,
        _groups(data, conversations),
        view_tokens(data.encoder, _shown(conversations[first])),
    )


def brief_audit(data: VLMData) -> list[str]:
    """The few lines that `fit` begins with: sizes, what was left out, what is in two splits."""
    conversations = {name: data.conversations(name) for name in data.prepared()}
    counts = ", ".join(f"{len(members)} {name}" for name, members in conversations.items())
    first = _split_audit(data, next(iter(conversations)))
    low, _, _, high = first.lengths
    lines = [
        f"data: {counts}; {low} to {high} tokens, {first.image_share:.0%} of them image and "
        f"{first.supervised_share:.0%} supervised; longest answer {data.max_target_tokens} tokens"
    ]
    if left_out := data.skipped:
        lines.append(f"skipped {len(left_out)}: " + "; ".join(left_out[:5]))
    found = [*leaks(data, conversations), *contradictions(data, conversations)]
    return lines + [f"{finding.level}: {finding.text} (see data check)" for finding in found]


def _split_audit(data: VLMData, name: str) -> SplitAudit:
    conversations, measured = data.conversations(name), data.measured[name]
    lengths = sorted(m.length for m in measured)
    images = [image for c in conversations for image in c.images]
    answers = Counter(answer for c in conversations for answer in _answers(c))
    return SplitAudit(
        conversations=len(conversations),
        answers=answers.total(),
        images=len(images),
        distinct_images=len({data.digests.image(image) for image in images}),
        text_only=sum(not c.images for c in conversations),
        lengths=(lengths[0], _quantile(lengths, 0.5), _quantile(lengths, 0.95), lengths[-1]),
        histogram=_histogram(lengths),
        image_share=sum(m.image_tokens for m in measured) / sum(lengths),
        supervised_share=sum(m.supervised for m in measured) / sum(lengths),
        distinct_answers=len(answers),
        commonest=answers.most_common(10),
    )


def _quantile(ordered: Sequence[int], share: float) -> int:
    """The value that `share` of the ordered values do not exceed.

    >>> _quantile([1, 2, 3, 4], 0.5)
    2
    """
    return ordered[max(0, int(-(-len(ordered) * share // 1)) - 1)]


def _histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(from, to, how many) in at most ten bins of equal width.

    >>> _histogram([1, 2, 2, 30])
    [(1, 3, 3), (4, 6, 0), (7, 9, 0), (10, 12, 0), (13, 15, 0), (16, 18, 0), (19, 21, 0), (22, 24, 0), (25, 27, 0), (28, 30, 1)]
    """
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // _BINS)
    counts = Counter((length - low) // width for length in lengths)
    return [
        (low + n * width, low + (n + 1) * width - 1, counts[n])
        for n in range((high - low) // width + 1)
    ]


def _answers(conversation: Conversation) -> list[str]:
    return [conversation.messages[turn].text for turn in conversation.assistant_turns]


def _groups(data: VLMData, splits: dict[str, list[Conversation]]) -> dict[str, dict[str, Any]]:
    """Value of data.group_by -> answers, and the share that the commonest of them has (all splits)."""
    if not data.group_by:
        return {}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for conversation in (c for members in splits.values() for c in members):
        found[str(conversation.extra.get(data.group_by, "(none)"))].update(_answers(conversation))
    return {
        value: {
            "answers": counts.total(),
            "distinct": len(counts),
            "commonest": counts.most_common(1)[0][0],
            "share": counts.most_common(1)[0][1] / counts.total(),
        }
        for value, counts in sorted(found.items())
    }


def _shown(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Three to look at: the first, the one with most pictures, the one with most turns."""
    wanted = (
        conversations[0],
        max(conversations, key=lambda c: len(c.images)),
        max(conversations, key=lambda c: len(c.messages)),
        *conversations[1:3],
    )
    return list({id(c): c for c in wanted}.values())[:3]
