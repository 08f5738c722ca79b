"""What can be answered without the pictures: the commonest training answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from vlmpeft.data.batches.dataset import Item


def language_prior(train: Sequence[Item], scored: Sequence[Item], kind: str = "kind") -> float:
    """Share of answers that are right if each is the commonest training answer to its question.

    A question that training does not have gets the commonest answer of its kind; a tie goes to the answer that
    came first. It is what a model that has learnt the language of a task, and nothing else, can be expected to
    reach, as on blank pictures.

    Args:
        train: what the answers are taken from.
        scored: what is answered.
        kind: field of the conversations with the kind of a question.

    Raises:
        ValueError: nothing to score.
    """
    if not scored:
        raise ValueError("language_prior: no items to score")
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for item in train:
        for key in _keys(item, kind):
            seen[key][item.expected] += 1
    right = 0
    for item in scored:
        answers = next((seen[key] for key in _keys(item, kind) if key in seen), None)
        right += bool(answers) and answers.most_common(1)[0][0] in item.references
    return right / len(scored)


def _keys(item: Item, kind: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The question, then its kind."""
    return ("question", item.prompt), ("kind", str(item.conversation.extra.get(kind)))
