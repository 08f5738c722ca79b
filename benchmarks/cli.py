"""How long the command line takes to answer: `--help` below 1 s, `fit --help` below 10 s.

python benchmarks/cli.py    # the best of three each; writes results/benchmarks/cli.json
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json

COMMANDS = {"--help": 1.0, "fit --help": 10.0}


def seconds(arguments: str, repeats: int = 3) -> float:
    """The shortest of some runs of `python -m vlmpeft ARGUMENTS`."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        command = [sys.executable, "-m", "vlmpeft", *arguments.split()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    measured = {arguments: round(seconds(arguments), 3) for arguments in COMMANDS}
    record = {"seconds": measured, "targets": COMMANDS, "versions": versions()}
    write_json(Path("results/benchmarks/cli.json"), record)
    for arguments, target in COMMANDS.items():
        print(f"{arguments}: {measured[arguments]:.2f} s (target {target:g} s)")
    return 0 if all(measured[a] <= target for a, target in COMMANDS.items()) else 4


if __name__ == "__main__":
    sys.exit(main())
