"""Writes the workbench tasks to disk as ordinary LLaVA-format JSON and PNG."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vlmpeft.data.workbench.format import FORMAT, FORMAT_SCENE
from vlmpeft.data.workbench.scene import SPLITS, draw_scene, random_scene
from vlmpeft.data.workbench.source import SOURCE, Ask, Question
from vlmpeft.data.workbench.trade import PAINTS, STOCK
from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.shipped import cache_dir

PREFIX = "workbench:"
VERSION = 2  # raise it when the same seed gives other data, so that stale caches are not read


@dataclass(frozen=True)
class Task:
    """A task of the workbench: weighted questions, and how many conversations each split has."""

    questions: dict[str, tuple[Ask, float]]
    train: int = 1600
    val: int = 200
    test: int = 400


TASKS = {
    "source": Task(SOURCE),
    "format": Task(FORMAT),
    "format_scene": Task(FORMAT_SCENE),
    "paints": Task(PAINTS, train=800),
    "stock": Task(STOCK, train=800),
}


def build_task(name: str, out: Path, seed: int = 0) -> dict[str, int]:
    """Write `out/{train,val,test}.json` and `out/images/`; returns the conversations a split.

    The same name and seed always give the same files. No layout is in two splits, whatever the task.
    """
    task = _task(name)
    (out / "images").mkdir(parents=True, exist_ok=True)
    counts = {}
    for split in SPLITS:
        records = [
            _write_record(task, name, split, index, seed, out)
            for index in range(getattr(task, split))
        ]
        (out / f"{split}.json").write_text(json.dumps(records, indent=1) + "\n")
        counts[split] = len(records)
    return counts


def _write_record(task: Task, name: str, split: str, index: int, seed: int, out: Path) -> dict:
    rng = random.Random(f"{name} {split} {index} {seed}")
    kinds = list(task.questions)
    weights = [weight for _, weight in task.questions.values()]
    while True:
        scene = random_scene(rng, split)
        ask, _ = task.questions[rng.choices(kinds, weights)[0]]
        if question := ask(scene, rng):
            break
    record = {"id": f"{name}-{split}-{index}", "kind": question.kind}
    if question.about_picture:
        record["image"] = f"images/{split}-{index}.png"
        draw_scene(scene).save(out / record["image"])
    return record | {"conversations": _turns(question)}


def _turns(question: Question) -> list[dict[str, str]]:
    placeholder = "<image>\n" if question.about_picture else ""
    return [
        {"from": "human", "value": placeholder + question.prompt},
        {"from": "gpt", "value": question.answer},
    ]


def cached_task(reference: str) -> Path:
    """The folder of `workbench:NAME`, written on first use; safe under concurrent first uses."""
    name = reference.removeprefix(PREFIX)
    _task(name)
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


def _task(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"unknown workbench task {name!r}.{did_you_mean(name, TASKS)}")
    return TASKS[name]
