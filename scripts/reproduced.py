#!/usr/bin/env python3
"""Whether a study that was run again gives its committed table: every row's mean within the committed row's 95 % interval.

python scripts/reproduced.py results/ranks reproduced/ranks    # exit code 4 if one is not
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmpeft.study.report.records import read_study
from vlmpeft.study.report.statistics import compare_rows, interval, summary


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("committed", type=Path)
    parser.add_argument("again", type=Path)
    args = parser.parse_args()
    old, new = read_study(args.committed), read_study(args.again)
    print("| row | task | committed [95 %] | again | |\n|---|---|---|---|---|")
    missed = 0
    for task in old.info.tasks:
        for row in old.info.rows:
            before, after = old.of(row.name, task), new.of(row.name, task)
            if not before or not after:
                continue
            metric = before[0].primary
            low, high = interval(before, metric, cluster=old.info.cluster)
            means = [summary(run.score() for run in runs).mean for runs in (before, after)]
            is_within = low <= means[1] <= high
            missed += not is_within
            found = compare_rows(before, after, metric, cluster=old.info.cluster)
            print(
                f"| {row.name} | {task} | {means[0]:.3f} [{low:.3f}, {high:.3f}] | {means[1]:.3f} | "
                f"{'within' if is_within else 'outside'}; difference {found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] |"
            )
    return 4 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
