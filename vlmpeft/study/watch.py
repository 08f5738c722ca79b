"""How far a study is, read from its folder: whatever process made the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import read_record
from vlmpeft.study.claims import Claims


@dataclass(frozen=True)
class Seen:
    """A run that is over.

    Args:
        name: its folder below the study's.
        error: of one that failed.
        score: the primary metric on val, else on what there is.
        seconds: of loading, training and scoring.
    """

    name: str
    error: str | None
    score: float | None
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Args:
        total: runs there are to make.
        over: those that are made, or failed.
        running: names of those that a living process works on.
        best: task -> (row, score) of the best run on validation so far; of equals the first.
    """

    total: int
    over: tuple[Seen, ...]
    running: tuple[str, ...]
    best: dict[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Seen, ...]:
        return tuple(seen for seen in self.over if seen.error)

    def eta_seconds(self) -> float | None:
        """Time left, if what is left takes as long as what was done; None as long as nothing is done."""
        done = [seen.seconds for seen in self.over if not seen.error]
        if not done:
            return None
        return (self.total - len(self.over)) * sum(done) / len(done) / max(1, len(self.running))


class StudyWatch:
    """Looks at a study's folder now and then; a record that was read once is not read again.

    Args:
        folder: of the study.
        names: of every run.
    """

    def __init__(self, folder: Path, names: Iterable[str]):
        self.folder, self.names = folder, list(dict.fromkeys(names))
        self.claims = Claims(folder / "claims")
        self._seen: dict[str, tuple[float, Seen]] = {}

    def look(self) -> Progress:
        """How far the study is now."""
        over = [seen for name in self.names if (seen := self._look_at(name))]
        known = {seen.name for seen in over if not seen.error}
        running = [n for n in self.names if n not in known and self.claims.is_claimed(n)]
        return Progress(len(self.names), tuple(over), tuple(running), _best(over))

    def _look_at(self, name: str) -> Seen | None:
        path = self.folder / name / "result.json"
        try:
            at = path.stat().st_mtime
            if name not in self._seen or self._seen[name][0] != at:
                record = read_record(path.parent)
                if record is None:
                    return None
                self._seen[name] = at, _seen(name, record)
            return self._seen[name][1]
        except (OSError, UserError):  # not there, or damaged: it is made again
            return None


def _seen(name: str, record: dict[str, Any]) -> Seen:
    if record["status"] != "done":
        return Seen(name, str(record.get("error")), None, 0.0)
    tuned = record["metrics"]["tuned"]
    scores = next((tuned[split] for split in ("val", "test", "retention") if split in tuned), {})
    return Seen(name, None, scores.get(record["primary"]), sum(record["seconds"].values()))


def _best(over: Iterable[Seen]) -> dict[str, tuple[str, float]]:
    best: dict[str, tuple[str, float]] = {}
    for seen in over:
        kind, _, task, row, *_ = seen.name.split("/")
        if kind != "runs" or seen.score is None:
            continue
        if task not in best or seen.score > best[task][1]:
            best[task] = row, seen.score
    return best
