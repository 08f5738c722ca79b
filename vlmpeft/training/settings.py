"""What a config says of a run beside its plan and its data: how it is scored, and the search for a rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Eval:
    """How a run is scored.

    Args:
        select: which checkpoint is scored: the last, or the best by the primary metric on val.
        every: optimizer steps between validations; 0 is once an epoch for best, never for last.
        limit: items scored per split; null is all.
        batch_size: items generated for at once.
        splits: which splits are scored; null is all that there are.
        controls: scored as well, after training: blank shows a grey picture in place of each, shuffled that of
            another item. A model that looks at its pictures does worse.
    """

    select: Literal["best", "last"] = "last"
    every: int = 0
    limit: int | None = None
    batch_size: int = 64
    splits: list[Literal["val", "test", "retention"]] | None = None
    controls: list[Literal["blank", "shuffled"]] = field(default_factory=list)


@dataclass(frozen=True)
class Search:
    """How the settings of a run were found; a score chosen among many is worth less.

    Args:
        tried: settings that were compared before these were taken.
        on: the split they were compared on.
    """

    tried: int = 1
    on: str = "val"
