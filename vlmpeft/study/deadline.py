"""A budget of time that is kept."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from vlmpeft.runtime.errors import Interrupted
from vlmpeft.study.stopping import Stop


class Deadline:
    """Ends a block when its time is over, as a signal would; the run at hand saves a checkpoint.

    Args:
        seconds: of the block.
        stop: what ends it.
    """

    def __init__(self, seconds: float, stop: Stop):
        self.seconds, self.stop, self.is_over = seconds, stop, False

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, time runs; in the main thread alone."""
        before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self.seconds))
        try:
            yield
        except Interrupted:
            if not self.is_over:
                raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _ring(self, *_: Any) -> None:
        self.is_over = True
        self.stop.request()
