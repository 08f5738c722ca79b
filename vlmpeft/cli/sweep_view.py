"""What a study shows while it runs: a live table on a terminal, a line a run elsewhere."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vlmpeft.runtime.visible import terminal_console, visible
from vlmpeft.study.budget import duration
from vlmpeft.study.planned_run import PlannedRun
from vlmpeft.study.watch import Progress, Seen, StudyWatch

LOOK_SECONDS = 1.0


class SweepView:
    """Shows how far a study is, whichever processes work on it. Everything goes to stderr.

    Args:
        title: of the study.
        watch: looks at its folder.
    """

    def __init__(self, title: str, watch: StudyWatch):
        self.title, self.watch = title, watch
        self.console: Console = terminal_console(stderr=True)
        self.step = ""  # of the run that this process makes
        self._noted: set[str] = set()
        self._live: Live | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SweepView:
        self._told = {seen.name for seen in self.watch.look().over}
        if self.console.is_terminal:
            self._live = Live(self._shown(), console=self.console, refresh_per_second=4)
            self._live.start()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
        self._tell(self.watch.look())
        if self._live:
            self._live.update(self._shown(), refresh=True)
            self._live.stop()

    # -- told by the runner ------------------------------------------------------------------------

    def started(self, run: PlannedRun) -> None:
        self.step = "starting"

    def stepped(self, step: int, total: int, loss: float) -> None:
        """After each optimizer step of this process."""
        self.step = f"step {step}/{total}, loss {loss:.4f}"

    def note(self, text: str) -> None:
        """A line that stays; the same line is said once."""
        if text in self._noted:
            return
        self._noted.add(text)
        self.console.print(visible(text), soft_wrap=True)

    # -- shown -------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if self._live:
                self._live.update(self._shown())
            else:
                self._tell(self.watch.look())

    def _tell(self, progress: Progress) -> None:
        """A line for each run that is over since the last look."""
        for seen in progress.over:
            if seen.name not in self._told:
                self._told.add(seen.name)
                if not self._live or seen.error:
                    self.note(_line(seen, progress))

    def _shown(self) -> Group:
        progress = self.watch.look()
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for name in progress.running[:16]:
            table.add_row(
                "running", Text(visible(name)), self.step if len(progress.running) == 1 else ""
            )
        for seen in progress.failed[-8:]:
            table.add_row("failed", Text(visible(seen.name)), Text(visible(str(seen.error))[:200]))
        for task, (row, score) in progress.best.items():
            table.add_row("best so far", Text(visible(f"{row} on {task}")), f"{score:.4f} on val")
        return Group(Text(visible(f"{self.title}: {summary(progress)}"), style="bold"), table)


def summary(progress: Progress) -> str:
    """One line: done, running, failed, time left."""
    done = len(progress.over) - len(progress.failed)
    parts = [f"{done}/{progress.total} done", f"{len(progress.running)} running"]
    if progress.failed:
        parts.append(f"{len(progress.failed)} failed")
    eta = progress.eta_seconds()
    if eta and done < progress.total:
        parts.append(f"about {duration(eta)} left")
    return ", ".join(parts)


def _line(seen: Seen, progress: Progress) -> str:
    if seen.error:
        return f"failed {seen.name}: {seen.error}"
    score = "" if seen.score is None else f", {seen.score:.4f} on val"
    return f"done {seen.name}: {seen.seconds:.0f} s{score} ({summary(progress)})"
