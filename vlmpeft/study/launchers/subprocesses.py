"""Each run in a process of its own: what one of them breaks, or leaves in memory, is gone with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from vlmpeft.runtime.errors import Interrupted, UserError
from vlmpeft.study.order import Order

INTERRUPTED = 3  # exit code of a process that was told to stop and saved


def command(order_path: Path | str) -> list[str]:
    """The command that makes the run of an order file; its standard input is a pipe from whoever waits for it."""
    return [sys.executable, "-m", "vlmpeft.cli.one_run", str(order_path), "--until_stdin_ends"]


def make_in_subprocess(order: Order, environment: Mapping[str, str] | None = None) -> None:
    """Make a run in a process of its own, and wait for it.

    Args:
        order: of the run.
        environment: of the process; default this one's.

    Raises:
        Interrupted: this process was told to stop; the other one was too, and has saved.
        UserError: it failed, with its last line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "order.json"
        path.write_text(json.dumps(asdict(order)))
        with (Path(scratch) / "log").open("w+", errors="replace") as log:
            process = subprocess.Popen(
                command(path),
                stdin=subprocess.PIPE,  # ends with this process, and the run with it
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment or os.environ,
                start_new_session=True,  # a signal of the terminal reaches it through this process, once
            )
            try:
                process.wait()
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.wait()
            log.seek(0)
            lines = log.read().strip().splitlines()
    check_ended(process.returncode, lines)


def check_ended(code: int, lines: list[str]) -> None:
    """Raise what the end of a run's process means; nothing if it is done.

    Args:
        code: its exit code; negative is a signal.
        lines: what it printed.
    """
    if code == 0:
        return
    said = lines[-1] if lines else "it printed nothing"
    if code == INTERRUPTED:
        raise Interrupted(said)
    if code < 0:
        name = signal.Signals(-code).name
        hint = (
            "; the system ends a process that way that takes too much memory" if code == -9 else ""
        )
        raise UserError(f"its process was ended by {name}{hint}; it printed last: {said}")
    raise UserError(said)
