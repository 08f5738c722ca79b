"""`data workbench`, `data template`, `data check`: what there is beside training to do with data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlmpeft.data.template import main as template
from vlmpeft.data.workbench.build import TASKS, build_task
from vlmpeft.runtime.arguments import Parser
from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.visible import visible

USAGE = """usage: python -m vlmpeft data COMMAND [options]

  check       what is in a config's data, before training   --config C [--html FILE] [--json]
  template    an annotation file to be filled in            --image_dir DIR --out FILE
  workbench   write a built-in task as JSON and PNG         [TASK] --out DIR
"""


def main(args: list[str], check: Callable[[list[str]], None]) -> None:
    """Run `data COMMAND ...`.

    Args:
        args: the command and its options.
        check: what `data check` does; it needs the parser of `fit`, which is above this package.
    """
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")  # noqa: T201
        return
    commands = {"check": check, "template": template, "workbench": workbench}
    if args[0] not in commands:
        raise UserError(f"unknown data command {args[0]!r}.{did_you_mean(args[0], commands)}")
    commands[args[0]](args[1:])


def workbench(args: list[str]) -> None:
    """Write a task to disk."""
    parser = Parser(
        prog="data workbench", description="Write a built-in task as LLaVA-format JSON and PNG."
    )
    parser.add_argument("task", nargs="?", default="format", help=", ".join(TASKS))
    parser.add_argument("--out", type=Path, required=True, help="folder for *.json and images/")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other scenes")
    settings = parser.parse_args(args)
    counts = build_task(settings.task, settings.out, settings.seed)
    print(visible(f"{settings.out}: " + ", ".join(f"{n} {s}" for s, n in counts.items())))  # noqa: T201
