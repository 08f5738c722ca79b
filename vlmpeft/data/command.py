"""`data workbench`: writes a built-in task to disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from vlmpeft.data.workbench.build import TASKS, build_task
from vlmpeft.errors import UserError, did_you_mean

COMMANDS = ("workbench",)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def main(args: list[str]) -> None:
    """Run `data COMMAND ...`."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: python -m vlmpeft data workbench [TASK] --out DIR [--seed N]")  # noqa: T201
        return
    if args[0] not in COMMANDS:
        raise UserError(f"unknown data command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}")
    parser = _Parser(
        prog="data workbench", description="Write a built-in task as LLaVA-format JSON and PNG."
    )
    parser.add_argument("task", nargs="?", default="format", help=", ".join(TASKS))
    parser.add_argument("--out", type=Path, required=True, help="folder for *.json and images/")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other scenes")
    settings = parser.parse_args(args[1:])
    counts = build_task(settings.task, settings.out, settings.seed)
    print(f"{settings.out}: " + ", ".join(f"{n} {split}" for split, n in counts.items()))  # noqa: T201
