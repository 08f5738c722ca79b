"""What of a study is made already, and whether it is what the study would make now."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import read_record, write_json
from vlmpeft.study.identity import described, differences, is_accepted
from vlmpeft.study.planned_run import PlannedRun
from vlmpeft.study.worker import Worker


@dataclass(frozen=True)
class Accept:
    """What is done with a finished record of other settings than the study's.

    Args:
        redo: it is made again.
        keys: it is kept if only these keys differ, or keys below them.
    """

    redo: bool = False
    keys: tuple[str, ...] = ()


class RecordsOnDisk:
    """The records below a study's folder.

    Args:
        folder: of the study.
        worker: knows what a run would be.
        accept: see there.
        since: time at which this call of `sweep` began: what failed before is tried again, what failed since is not.
        note: told what is set aside.
    """

    def __init__(
        self,
        folder: Path,
        worker: Worker,
        accept: Accept,
        since: float,
        note: Callable[[str], None],
    ):
        self.folder, self.worker, self.accept = folder, worker, accept
        self.since, self.note = since, note
        self._redone: set[str] = set()
        self._read_before: dict[str, tuple[int, dict[str, Any]]] = {}

    def is_over(self, run: PlannedRun) -> bool:
        """Whether nothing is left to do: the run is done, or failed since this call began."""
        record = self._read(run)
        if record is None:
            return False
        if record["status"] == "done":
            return True
        return self._read_before[run.name][0] >= self.since * 1e9

    def scores(self, run: PlannedRun, split: str) -> tuple[float, float] | None:
        """(primary score, loss) of a finished run on a split; None of one that failed."""
        record = self._read(run)
        if record is None or record["status"] != "done":
            return None
        scores = record["metrics"]["tuned"][split]
        return scores[record["primary"]], scores["loss"]

    def check(self, run: PlannedRun) -> None:
        """Compare a finished record with what the study would make now; with `redo`, remove one that differs.

        Raises:
            UserError: it differs in a key that is not accepted.
        """
        record = self._read(run)
        if record is None or record["status"] != "done" or run.name in self._redone:
            return
        identity = self.worker.identity(run.args, run.seed)
        found = list(differences(record.get("identity"), identity))
        refused = [one for one in found if not is_accepted(one[0], self.accept.keys)]
        path = self.folder / run.name / "result.json"
        if refused and not self.accept.redo:
            raise UserError(
                f"record {path} was made with other settings: {described(refused)}; give --redo=true to make it again, or "
                f"--accept {refused[0][0]} to keep it"
            )
        if refused:
            self._redone.add(run.name)
            path.unlink(missing_ok=True)
        elif found:
            accepted = {key: [old, new] for key, old, new in found}
            if record.get("accepted") != accepted:
                write_json(path, record | {"accepted": accepted})

    def _read(self, run: PlannedRun) -> dict[str, Any] | None:
        """The run's record, read again only if it has changed; one that cannot be read is set aside, and the run is made again."""
        folder = self.folder / run.name
        try:
            written = (folder / "result.json").stat().st_mtime_ns
            known = self._read_before.get(run.name)
            if known and known[0] == written:
                return known[1]
            record = read_record(folder)
            if record is None:
                return None
            if record["status"] != "done" or "metrics" in record:
                self._read_before[run.name] = written, record
                return record
            raise UserError(f"record {folder / 'result.json'} says done and holds no scores")
        except FileNotFoundError:
            return None
        except UserError as error:
            aside = folder / "result.json.damaged"
            with contextlib.suppress(FileNotFoundError):  # set aside by another process
                (folder / "result.json").replace(aside)
            self.note(f"{error} - set aside as {aside.name}; the run is made again")
            return None
