"""`make fit` as a user runs it, for three seeds: wall time, peak memory, exact match before and after.

    python benchmarks/fit.py    # 2 CPU cores, 1.5 GB, 5 minutes

Writes each run's record to results/format/<config>-seed<N>.json and the sum to
results/benchmarks/fit-<config>.json. Targets: 180 s and 1.5 GB a run; exact match on test from below 10 %
to at least 90 %, mean of the seeds. Exit code 4 if the scores miss their target.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import read_record, write_json

MOST_SECONDS, MOST_BYTES, MOST_BASE, LEAST_TUNED = 180, 1.5e9, 0.10, 0.90


def run_fit(config: str, seed: int, extra: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """One fit in a fresh process and cache; returns its record and what it cost."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "vlmpeft", "fit", "--config", config, *extra]
        command += [f"--seed_everything={seed}", f"--runs_dir={scratch}", "--run_name=run"]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=os.environ | {"VLMPEFT_CACHE": f"{scratch}/cache"})
        seconds = time.perf_counter() - start
        record = read_record(Path(scratch) / "run")
    assert record is not None
    return record, {"seconds": seconds, "peak_bytes": record["peak_memory_bytes"]}


def summarise(records: list[dict[str, Any]], costs: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the targets."""
    tuned = [record["metrics"]["tuned"]["test"]["exact_match"] for record in records]
    base = [record["metrics"]["base"]["test"]["exact_match"] for record in records]
    return {
        "seeds": [record["seed"] for record in records],
        "base_exact_match": statistics.mean(base),
        "tuned_exact_match": tuned,
        "tuned_mean": statistics.mean(tuned),
        "tuned_sd": statistics.stdev(tuned) if len(tuned) > 1 else 0.0,
        "seconds": [round(cost["seconds"], 1) for cost in costs],
        "peak_bytes": [cost["peak_bytes"] for cost in costs],
        "targets": {
            "seconds": MOST_SECONDS,
            "bytes": MOST_BYTES,
            "base": MOST_BASE,
            "tuned": LEAST_TUNED,
        },
        "device": records[0]["device"],
        "versions": versions(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="lora_r16.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("results"))
    args, extra = parser.parse_known_args()
    stem, records, costs = Path(args.config).stem, [], []
    for seed in args.seeds:
        record, cost = run_fit(args.config, seed, extra)
        write_json(args.results / "format" / f"{stem}-seed{seed}.json", record)
        records.append(record)
        costs.append(cost)
    summary = summarise(records, costs)
    write_json(args.results / "benchmarks" / f"fit-{stem}.json", summary)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        f"{stem}: exact match {summary['base_exact_match']:.3f} -> {summary['tuned_mean']:.3f} "
        f"+- {summary['tuned_sd']:.3f}; {max(summary['seconds']):.0f} s, {children / 1e9:.2f} GB at most"
    )
    reached = summary["base_exact_match"] < MOST_BASE and summary["tuned_mean"] >= LEAST_TUNED
    return 0 if reached else 4


if __name__ == "__main__":
    sys.exit(main())
