"""Data of a study: sizes, an example of each task, how answers were generated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from vlmpeft.runtime.records import read_items
from vlmpeft.study.report import numerals
from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.document import Listing, Paragraph, Part
from vlmpeft.study.report.entries import seed_name
from vlmpeft.study.report.records import BASE_ROW
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.settings import written
from vlmpeft.study.report.table import text_table

_DIGITS = 12  # of a hash
_LONGEST = 2000  # characters of a prompt


def data(contents: Contents) -> Iterator[Part]:
    """Sizes and hashes of the splits of each task."""
    lines = dict[tuple[str, ...], None]()
    for run in contents.study.runs:
        if run.task in contents.tasks:
            for split, of in (run.record.get("data") or {}).items():
                count, digest = of.get("conversations"), str(of.get("sha256"))[:_DIGITS]
                size = "-" if count is None else numerals.integer(count)
                lines[contents.tasks[run.task], str(split), size, digest] = None
    if lines:
        yield text_table(
            ["task", "split", "conversations", "sha256"], list(lines), numbers=["conversations"]
        )


def examples(contents: Contents) -> Iterator[Part]:
    """The first item of each task: what was asked, expected and answered."""
    for task, title in contents.tasks.items():
        for run in _in_order(contents, task):
            if item := _first_item(run):
                texts = {"prompt": item.get("prompt"), "expected": item.get("expected")}
                answered = item.get("generated")
                lines = [f"{name}: {_cut(text)}" for name, text in texts.items()]
                lines.append(f"answered ({run.row}, {seed_name(run)}): {_cut(answered)}")
                yield Paragraph(f"{title}, item {item.get('id')}")
                yield Listing("\n".join(lines))
                break


def _in_order(contents: Contents, task: str) -> list[Run]:
    """The runs of a task, the reference's first."""
    runs = [run for run in contents.study.runs if run.task == task and run.row != BASE_ROW]
    return sorted(runs, key=lambda run: (run.row != contents.reference, run.folder.as_posix()))


def _first_item(run: Run) -> Mapping[str, Any] | None:
    """The item of the first id; None if there is none that can be read."""
    try:
        return min(read_items(run.folder / "items.jsonl.gz"), key=lambda item: str(item["id"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def decoding(contents: Contents) -> Iterator[Part]:
    """How answers were generated, and by which chat template."""
    known = dict[str, None]()
    for run in contents.study.runs:
        said = ", ".join(f"{k} {written(v)}" for k, v in (run.record.get("decoding") or {}).items())
        if said and run.task in contents.tasks:
            known[f"{contents.tasks[run.task]}: {said}"] = None
    yield from map(Paragraph, known)
    templates = {(run.record.get("identity") or {}).get("template") for run in contents.study.runs}
    for template in sorted(one for one in templates if one):
        digest = hashlib.sha256(str(template).encode()).hexdigest()[:_DIGITS]
        yield Paragraph(f"chat template: sha256 {digest}")


def _cut(text: object) -> str:
    shown = " ".join(str(text).split())
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."
