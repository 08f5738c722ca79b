"""One run of a study as a process: `python -m vlmpeft.cli.one_run ORDER.json`. Launchers start it; it is no verb."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from vlmpeft.runtime.errors import Interrupted, UserError


def main(path: str) -> int:
    """Make the run of an order file; returns the exit code."""
    from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

    declare_torchvision_ops()
    from vlmpeft.cli.study_runs import RunOpener
    from vlmpeft.study.order import Order
    from vlmpeft.study.stopping import Stop
    from vlmpeft.study.worker import Worker

    content = json.loads(Path(path).read_text())
    order = Order(**content | {"args": tuple(content["args"])})
    stop = Stop()
    try:
        with stop.handled():
            Worker(RunOpener([stop])).complete(order)
    except Interrupted as error:
        print(f"{error}", file=sys.stderr)  # noqa: T201
        return 3
    except Exception as error:  # noqa: BLE001  its last line is what the study's record says
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        line = " ".join(str(error).split())
        print(f"{kind}{line}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _end_with_stdin() -> None:
    """End at once when the process that started this one is no more: another may make the run by then."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin: its lock would be held when the process ends
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    if "--until_stdin_ends" in sys.argv[2:]:
        _end_with_stdin()
    sys.exit(main(sys.argv[1]))
