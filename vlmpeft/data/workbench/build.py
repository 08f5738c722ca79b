"""Writes the workbench tasks to disk as ordinary LLaVA-format JSON and PNG."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vlmpeft.data.workbench.reference import read_reference
from vlmpeft.data.workbench.scene import SPLITS
from vlmpeft.data.workbench.source import Question
from vlmpeft.data.workbench.tasks import Task
from vlmpeft.runtime.shipped import cache_dir

VERSION = 3  # raise it when the same seed gives other data, so that stale caches are not read


def build_task(reference: str, out: Path, seed: int = 0) -> dict[str, int]:
    """Write `out/{train,val,test}.json` and `out/images/`; returns the conversations a split.

    The same reference and seed always give the same files. No layout is in two splits, whatever the task;
    at every size of its shift a task has the same questions about the same layouts, but for `gauge`.

    Raises:
        UserError: as `read_reference`.
    """
    meant = read_reference(reference)
    task = meant.resolve()
    (out / "images").mkdir(parents=True, exist_ok=True)
    counts = {}
    for split in SPLITS:
        number = getattr(task, split)
        records = [
            _write_record(task, meant.task, split, index, seed, out) for index in range(number)
        ]
        (out / f"{split}.json").write_text(json.dumps(records, indent=1) + "\n")
        counts[split] = number
    return counts


def _write_record(
    task: Task, name: str, split: str, index: int, seed: int, out: Path
) -> dict[str, Any]:
    rng = random.Random(f"{name} {split} {index} {seed}")
    question, scene = task.example(rng, split, index)
    record = {"id": f"{name}-{split}-{index}", "kind": question.kind}
    if question.about_picture:
        record["image"] = f"images/{split}-{index}.png"
        task.draw(scene).save(out / record["image"])
    return record | {"conversations": _turns(question)}


def _turns(question: Question) -> list[dict[str, str]]:
    placeholder = "<image>\n" if question.about_picture else ""
    return [
        {"from": "human", "value": placeholder + question.prompt},
        {"from": "gpt", "value": question.answer},
    ]


def cached_task(reference: str) -> Path:
    """The folder of `workbench:NAME`, written on first use; safe under concurrent first uses.

    Raises:
        UserError: as `read_reference`.
    """
    name = read_reference(reference).name
    final = cache_dir() / "workbench" / f"{name}-v{VERSION}"
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=final.parent))
    build_task(name, scratch)
    try:
        scratch.replace(final)
    except OSError:  # another process was first
        shutil.rmtree(scratch)
    return final
