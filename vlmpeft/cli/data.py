"""`data workbench` and `data template`: a built-in task, and an annotation file to be filled in."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from pathlib import Path

from vlmpeft.data.template import PLACEHOLDER, QUESTIONS, TemplateCount, write_template
from vlmpeft.data.workbench.build import build_task
from vlmpeft.data.workbench.preview import draw_preview
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import write_atomically
from vlmpeft.runtime.visible import visible


def write_workbench(task: str, out: Path | None, preview: Path | None, seed: int) -> None:
    """Write a task to disk, a picture of all tasks, or both, and say what was written.

    Raises:
        UserError: nothing to write, an unknown task, a preview that would be no PNG.
    """
    if preview:
        _write_preview(preview, seed)
    if out:
        counts = build_task(task, out, seed)
        print(visible(f"{out}: " + ", ".join(f"{n} {s}" for s, n in counts.items())))  # noqa: T201


def _write_preview(path: Path, seed: int) -> None:
    if path.suffix.lower() != ".png":
        raise UserError(f"data workbench: --preview {path} is written as PNG; end it with .png")
    picture, held = draw_preview(seed), io.BytesIO()
    picture.save(held, "PNG", optimize=True)
    write_atomically(path, held.getvalue())
    print(visible(f"{path}: {picture.width} x {picture.height} pixels"))  # noqa: T201


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
