"""What is asked of whoever makes a run: plain data, so that it can be given to another process or machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Order:
    """One run of a study.

    Args:
        name: its folder below the study's, for messages.
        args: of `python -m vlmpeft fit`, without the run folder.
        folder: where it is made.
        labels: what its record says of the study.
        base_folder: where the scores of the untouched base are left, if they are not there yet; None leaves none.
    """

    name: str
    args: tuple[str, ...]
    folder: str
    labels: Mapping[str, Any]
    base_folder: str | None = None


Make = Callable[[Order], None]
"""Makes a run. Raises what went wrong: UserError, Interrupted, or anything else."""
