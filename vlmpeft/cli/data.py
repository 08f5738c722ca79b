"""`data workbench`, `data template`, `data check`: what there is beside training to do with data."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from vlmpeft.cli.arguments import Parser
from vlmpeft.data.template import PLACEHOLDER, QUESTIONS, TemplateCount, write_template
from vlmpeft.data.workbench.build import TASKS, build_task
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


def template(args: list[str]) -> None:
    """Run `data template ...`."""
    parser = Parser(
        prog="data template", description="Write an annotation file for a folder of pictures."
    )
    parser.add_argument("--image_dir", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--out", type=Path, required=True, help=".json file; added to if it exists")
    parser.add_argument(
        "--question",
        nargs="+",
        action="extend",
        metavar="TEXT",
        help="asked about each picture; default: " + " ".join(QUESTIONS),
    )
    settings = parser.parse_args(args)
    count = write_template(settings.image_dir, settings.out, settings.question or list(QUESTIONS))
    print(visible("\n".join(_template_report(count, settings.image_dir, settings.out))))  # noqa: T201


def _template_report(count: TemplateCount, image_dir: Path, out: Path) -> Iterator[str]:
    yield f"{image_dir}: {count.pictures} pictures, {count.skipped} other files skipped"
    yield f"{out}: {count.added} records added, {count.kept} kept"
    yield f"{count.waiting} answers still to be filled in: replace each {PLACEHOLDER} ...]"
    if count.unreadable:
        yield f"{len(count.unreadable)} pictures cannot be read:"
        yield from (f"  {line}" for line in count.unreadable[:5])
    where = f"--data.train {shlex.quote(str(out))} --data.image_dir {shlex.quote(str(image_dir))}"
    yield f"next: python -m vlmpeft data check {where}"
