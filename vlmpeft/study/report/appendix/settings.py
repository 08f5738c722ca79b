"""Settings of every row, and the search that chose them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmpeft.study.report import numerals
from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.document import Listing, Paragraph, Part
from vlmpeft.study.report.info import Row
from vlmpeft.study.report.plans import COMPONENTS, planned
from vlmpeft.study.report.records import BASE_ROW
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.settings import flat, split_common, written
from vlmpeft.study.report.table import text_table

_TRAINING = {
    "model": ("base.bits", "base.double_quant", "metrics", "weight_decay", "warmup_ratio", "gradient_checkpointing"),
    "data": ("batch_size", "max_length", "max_pixels", "over_length", "on_error"),
    "trainer": ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision"),
    "eval": ("select", "every"),
}  # fmt: skip


def settings(contents: Contents) -> Iterator[Part]:
    """What is the same for every run, and a table of what each row does to each component."""
    groups = [(row, runs) for row in contents.rows for runs in runs_by_settings(contents, row)]
    if not groups:
        return
    common, others = split_common([_training(runs[0].record) for _, runs in groups])
    if common:
        yield Listing("\n".join(f"{key}: {written(value)}" for key, value in common.items()))
    lines = [
        [row.title, _tasks(contents, runs), *_components(runs[0]), _listed(other)]
        for (row, runs), other in zip(groups, others, strict=True)
    ]
    yield text_table(["row", "task", *COMPONENTS, "other"], lines)


def runs_by_settings(contents: Contents, row: Row) -> list[list[Run]]:
    """The first run of each base and task; those with the same plan and settings together. None of the untouched base."""
    found = dict[str, list[Run]]()
    for run in _first_runs(contents, row):
        key = repr(([str(one) for one in planned(run.record)], _training(run.record)))
        found.setdefault(key, []).append(run)
    return [] if row.name == BASE_ROW else list(found.values())


def _first_runs(contents: Contents, row: Row) -> Iterator[Run]:
    for base in contents.bases:
        for task in contents.tasks:
            yield from contents.index.runs.get((row.name, task, base), ())[:1]


def _tasks(contents: Contents, runs: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(contents.tasks[run.task] for run in runs))


def _components(run: Run) -> list[str]:
    """What is done to each component."""
    plan = defaultdict(list)
    for one in planned(run.record):
        plan[one.component].append(str(one))
    return ["; ".join(plan[component]) or "frozen" for component in COMPONENTS]


def search(contents: Contents) -> Iterator[Part]:
    """Bounds of the search, and what every candidate scored."""
    runs = [(row, run) for row in contents.rows for run in _first_runs(contents, row)]
    found = [(row, run, run.record.get("search") or {}) for row, run in runs]
    found = [(row, run, of) for row, run, of in found if of.get("candidates")]
    for key, values in _bounds([of for _, _, of in found]).items():
        yield Paragraph(f"{key}: {', '.join(map(written, values))}")
    lines = [
        [row.title, _tasks(contents, [run]), _candidates(of), _listed(of.get("chosen") or {})]
        for row, run, of in found
    ]
    if lines:
        yield text_table(
            ["row", "task", "candidates, with their mean score", "chosen"],
            lines,
            notes=[f"Scores are on {' and '.join(sorted({str(of['on']) for _, _, of in found}))}."],
        )


def _bounds(searches: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key -> every value that was tried, numbers in order."""
    tried = defaultdict(dict)
    for one in searches:
        for candidate in one["candidates"]:
            for key, value in candidate["settings"].items():
                tried[key][written(value)] = value
    return {key: sorted(values.values(), key=_order) for key, values in tried.items()}


def _order(value: Any) -> tuple[bool, Any]:
    is_number = isinstance(value, (int, float))
    return not is_number, value if is_number else written(value)


def _candidates(search: Mapping[str, Any]) -> str:
    """Each with its score; the name of the setting only where there are several."""
    candidates = search["candidates"]
    is_one = len({key for one in candidates for key in one["settings"]}) == 1
    named = [
        written(*one["settings"].values()) if is_one else _listed(one["settings"])
        for one in candidates
    ]
    scores = [_mean(one.get("scores") or ()) for one in candidates]
    return "; ".join(f"{name}: {score}" for name, score in zip(named, scores, strict=True))


def _mean(scores: Sequence[float]) -> str:
    return numerals.fixed(sum(scores) / len(scores), 3) if scores else "failed"


def _listed(settings: Mapping[str, Any]) -> str:
    """Settings on one line, by the last part of their keys."""
    pairs = (f"{key.rpartition('.')[2]} {written(value)}" for key, value in settings.items())
    return ", ".join(pairs) or "-"


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings beside the plan."""
    config = record.get("config") or {}
    found = {}
    for group, keys in _TRAINING.items():
        known = flat(config.get(group) or {}, group)
        wanted = tuple(f"{group}.{key}" for key in keys)
        found |= {key: value for key, value in known.items() if key.startswith(wanted)}
    return found
