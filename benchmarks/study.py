"""A study of 36 runs in one process beside 36 `fit` commands: wall time, what is neither training nor scoring, equal results.

    python benchmarks/study.py            # 2 CPU cores, about 15 minutes; writes results/benchmarks/study.json
    python benchmarks/study.py --fits 6   # only every sixth run as a command of its own

{vision, projector, language} x {LoRA, DoRA, bottleneck adapter, full} x 3 seeds on the embedded base, 60 steps a run. Targets: at
most 1 s a run beside training and scoring, and at least twice as fast as the commands. Valid only if every loss of the curves agrees
to 1e-6 (exit code 4 otherwise). The commands have the cache of the study, as a shell loop around `fit` would.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import read_record, write_json

MOST_OVERHEAD, LEAST_SPEEDUP, PARITY = 1.0, 2.0, 1e-6
STEPS = 60
STUDY = """
title: 36 runs
base: {{tiny: {{path: tiny, bits.language: fp32}}}}
set: {{trainer.max_steps: {steps}, model.plan: {{vision: Frozen, projector: Frozen, language: Frozen}}}}
tasks: [format]
seeds: [0, 1, 2]
rows:
  "{{component}}_{{method}}":
    grid: {{component: [vision, projector, language], method: [LoRA, DoRA, BottleneckAdapter, Full]}}
    set: {{"model.plan.{{component}}": "{{method}}"}}
"""


def run(command: list[str], folder: Path) -> float:
    """A command's wall time; its output goes to a file."""
    environment = os.environ | {"VLMPEFT_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    with (folder / "log").open("a") as log:
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
    return time.perf_counter() - start


def losses(run_dir: Path) -> list[float]:
    """The loss of each step."""
    rows = [line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()[1:]]
    return [float(value) for _, name, value in rows if name == "train/loss"]


def commands(study: Path) -> dict[str, list[str]]:
    """Row -> the arguments of its `fit`, as the dry run prints them."""
    done = subprocess.run(
        [sys.executable, "-m", "vlmpeft", "sweep", str(study), "--dry_run=true", "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    cells = json.loads(done.stdout)["cells"]
    return {cell["row"]: shlex.split(cell["command"])[4:] for cell in cells}


def measure(folder: Path, every: int, steps: int) -> dict[str, Any]:
    """Both arms, the study first."""
    study, out = folder / "study36.yaml", folder / "out"
    study.write_text(STUDY.format(steps=steps))
    python = [sys.executable, "-m", "vlmpeft"]
    # what both arms need once: tokens' lengths and the base's scores, in the cache
    rows = commands(study)
    names = [(row, seed) for row in rows for seed in (0, 1, 2)]
    run([*python, "fit", *rows[names[0][0]], f"--runs_dir={folder}", "--run_name=warm"], folder)
    together = run([*python, "sweep", str(study), "--out", str(out)], folder)
    folders = {name: out / "runs/tiny/format" / name[0] / f"seed{name[1]}" for name in names}
    records = {name: read_record(path) for name, path in folders.items()}
    work = sum(r["seconds"]["fit"] + r["seconds"]["score"] for r in records.values() if r)
    alone, differences = [], []
    for row, seed in names[::every]:
        more = [f"--seed_everything={seed}", f"--runs_dir={folder}", f"--run_name={row}-{seed}"]
        alone.append(run([*python, "fit", *rows[row], *more], folder))
        pairs = zip(losses(folders[row, seed]), losses(folder / f"{row}-{seed}"), strict=True)
        differences.append(max(abs(a - b) for a, b in pairs))
    commands_seconds = sum(alone) / len(alone) * len(names)
    return {
        "runs": len(names),
        "steps": steps,
        "study_seconds": round(together, 1),
        "fit_seconds": round(commands_seconds, 1),
        "fits_measured": len(alone),
        "work_seconds": round(work, 1),
        "overhead_seconds_a_run": round((together - work) / len(names), 3),
        "speedup": round(commands_seconds / together, 2),
        "largest_loss_difference": max(differences),
    }


def table(found: dict[str, Any]) -> str:
    """The record as Markdown."""
    parity = found["largest_loss_difference"] <= PARITY
    overhead, speedup = found["overhead_seconds_a_run"], found["speedup"]
    verdict = "equal" if parity else "NOT equal"
    met = "met" if speedup >= LEAST_SPEEDUP else "missed"
    small = "met" if overhead <= MOST_OVERHEAD else "missed"
    return "\n".join(
        [
            "| runs | study / commands | beside training and scoring | loss curves |",
            "|---|---|---|---|",
            f"| {found['runs']} of {found['steps']} steps | {speedup:.2f}x faster; >= {LEAST_SPEEDUP:g}x {met} | "
            f"{overhead:.2f} s a run, start-up included; <= {MOST_OVERHEAD:g} s {small} | {verdict}, largest difference "
            f"{found['largest_loss_difference']:.1e} |",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fits", type=int, default=36, help="commands that are measured, of 36")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=Path("results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), max(1, 36 // args.fits), args.steps)
    text = table(found)
    write_json(
        args.results / "benchmarks" / "study.json", found | {"table": text, "versions": versions()}
    )
    print(text)
    met = found["speedup"] >= LEAST_SPEEDUP and found["overhead_seconds_a_run"] <= MOST_OVERHEAD
    return 0 if met and found["largest_loss_difference"] <= PARITY else 4


if __name__ == "__main__":
    sys.exit(main())
