"""How long the command line takes to answer: help, a mistake, a plan; wall seconds and CPU seconds of the whole process.

python benchmarks/cli.py    # the best of three each; writes results/benchmarks/cli.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json

# arguments -> (measure, most seconds)
COMMANDS = {
    "--help": ("wall", 1.0),
    "plan --help": ("wall", 2.0),
    "fit --help": ("wall", 10.0),
    "fit --trainer.max_epoch=3": ("wall", 2.0),
    "fit --data.train=nowhere.json": ("wall", 2.0),
    "fit --config=lora_61.yaml": ("wall", 2.0),
    "merge --method=tiez --adapters x": ("wall", 2.0),
    "plan --config=lora_r16.yaml": ("cpu", 4.0),
}


def seconds(arguments: str, repeats: int = 3) -> dict[str, float]:
    """The shortest of some runs of `python -m vlmpeft ARGUMENTS`, by the clock and of CPU."""
    wall, cpu = [], []
    for _ in range(repeats):
        before, start = os.times(), time.perf_counter()
        command = [sys.executable, "-m", "vlmpeft", *arguments.split()]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall.append(time.perf_counter() - start)
        after = os.times()
        cpu.append(sum(after[2:4]) - sum(before[2:4]))
    return {"wall": round(min(wall), 3), "cpu": round(min(cpu), 3)}


def main() -> int:
    measured = {arguments: seconds(arguments) for arguments in COMMANDS}
    record = {"seconds": measured, "targets": COMMANDS, "versions": versions()}
    write_json(Path("results/benchmarks/cli.json"), record)
    late = []
    for arguments, (measure, target) in COMMANDS.items():
        took = measured[arguments][measure]
        print(f"{arguments}: {took:.2f} s {measure} (target {target:g} s)")
        late += [arguments] if took > target else []
    return 4 if late else 0


if __name__ == "__main__":
    sys.exit(main())
