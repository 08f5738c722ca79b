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

# what `plan` cannot do without: the modules of transformers and PEFT that build a LLaVA and its adapters
FLOOR = """
import sys
sys.modules["bitsandbytes"] = None
from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops
declare_torchvision_ops()
from transformers.models.clip.modeling_clip import CLIPModel
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration
import peft
"""
MOST_OVER_FLOOR = 1.25
PLAN = "plan --config=lora_r16.yaml"
# arguments -> (measure, most seconds)
COMMANDS = {
    "--help": ("wall", 1.0),
    "plan --help": ("wall", 2.0),
    "fit --help": ("wall", 10.0),
    "fit --trainer.max_epoch=3": ("wall", 2.0),
    "fit --data.train=nowhere.json": ("wall", 2.0),
    "fit --config=lora_61.yaml": ("wall", 2.0),
    "merge --method=tiez --adapters x": ("wall", 2.0),
    PLAN: ("cpu", 4.0),  # not reached: the imports alone take longer
}


def seconds(command: list[str], repeats: int = 3) -> dict[str, float]:
    """The shortest of some runs of a Python command, by the clock and of CPU."""
    wall, cpu = [], []
    for _ in range(repeats):
        before, start = os.times(), time.perf_counter()
        subprocess.run(
            [sys.executable, *command],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wall.append(time.perf_counter() - start)
        after = os.times()
        cpu.append(sum(after[2:4]) - sum(before[2:4]))
    return {"wall": round(min(wall), 3), "cpu": round(min(cpu), 3)}


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"  # a second thread would spin, and count
    measured = {a: seconds(["-m", "vlmpeft", *a.split()]) for a in COMMANDS}
    floor = seconds(["-c", FLOOR])
    over = round(measured[PLAN]["cpu"] / floor["cpu"], 3)
    record = {
        "seconds": measured,
        "targets": COMMANDS,
        "plan_floor": floor,
        "plan_over_floor": over,
    }
    record["versions"] = versions()
    write_json(Path("results/benchmarks/cli.json"), record)
    late = []
    for arguments, (measure, target) in COMMANDS.items():
        took = measured[arguments][measure]
        print(f"{arguments}: {took:.2f} s {measure} (target {target:g} s)")
        late += [arguments] if took > target else []
    print(
        f"{PLAN}: {over:.2f} times the imports alone ({floor['cpu']:.2f} s; target {MOST_OVER_FLOOR})"
    )
    return 4 if late or over > MOST_OVER_FLOOR else 0


if __name__ == "__main__":
    sys.exit(main())
