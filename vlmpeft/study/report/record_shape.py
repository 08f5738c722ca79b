"""Whether a record has the shape that tables and plots read; it may come from anywhere, or be half of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmpeft.runtime.errors import UserError

SPLITS = ("test", "val", "retention")  # the first that there is, is the reported one
_MAPPINGS = (
    "base", "components", "config", "controls", "data", "decoding", "git", "identity", "metrics", "search", "seconds",
    "versions",
)  # fmt: skip
_NUMBERS = (
    "adapter_bytes", "peak_memory_bytes", "seed", "steps", "supervised_tokens", "total", "trainable",
)  # fmt: skip


def check_shape(record: Mapping[str, Any], place: object) -> None:
    """A finished record has scores, and its parts are what they are called.

    Args:
        record: of a finished run.
        place: of it, for the message.

    Raises:
        UserError: with the first part that is not.
    """
    if problem := _problem(record):
        raise UserError(f"record {place} {problem}; remove its folder and run it again")


def _problem(record: Mapping[str, Any]) -> str:
    for key in _MAPPINGS:
        if not isinstance(record.get(key) or {}, Mapping):
            return f"has no mapping as its {key}"
    for key in _NUMBERS:
        if not isinstance(record.get(key) or 0, (int, float)):
            return f"has no number as its {key}"
    metrics = record.get("metrics") or {}
    if not isinstance(record.get("primary"), str) or not _are_scores(metrics.get("tuned")):
        return "has no scores"
    if not {*SPLITS} & metrics["tuned"].keys():
        return f"has no scores on {' or '.join(SPLITS)}"
    if not all(_are_scores(metrics[state]) for state in metrics):
        return "has scores that are no numbers"
    if not all(isinstance(v, (int, float)) for v in (record.get("seconds") or {}).values()):
        return "has seconds that are no numbers"
    return ""


def _are_scores(splits: object) -> bool:
    """Split -> metric -> number."""
    return isinstance(splits, Mapping) and all(
        isinstance(scores, Mapping) and all(isinstance(v, (int, float)) for v in scores.values())
        for scores in splits.values()
    )
