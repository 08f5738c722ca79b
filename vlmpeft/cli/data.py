"""`data workbench` and `data template`: a built-in task, and an annotation file to be filled in."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from vlmpeft.data.template import PLACEHOLDER, QUESTIONS, TemplateCount, write_template
from vlmpeft.data.workbench.build import build_task
from vlmpeft.runtime.visible import visible


def write_workbench(task: str, out: Path, seed: int) -> None:
    """Write a task to disk, and say how many conversations it has."""
    counts = build_task(task, out, seed)
    print(visible(f"{out}: " + ", ".join(f"{n} {s}" for s, n in counts.items())))  # noqa: T201


def write_template_file(image_dir: Path, out: Path, questions: list[str] | None) -> None:
    """Write an annotation file, and say what is in it and what comes next."""
    count = write_template(image_dir, out, questions or list(QUESTIONS))
    print(visible("\n".join(_template_report(count, image_dir, out))))  # noqa: T201


def _template_report(count: TemplateCount, image_dir: Path, out: Path) -> Iterator[str]:
    yield f"{image_dir}: {count.pictures} pictures, {count.skipped} other files skipped"
    yield f"{out}: {count.added} records added, {count.kept} kept"
    yield f"{count.waiting} answers still to be filled in: replace each {PLACEHOLDER} ...]"
    if count.unreadable:
        yield f"{len(count.unreadable)} pictures cannot be read:"
        yield from (f"  {line}" for line in count.unreadable[:5])
    where = f"--data.train {shlex.quote(str(out))} --data.image_dir {shlex.quote(str(image_dir))}"
    yield f"next: python -m vlmpeft data check {where}"
