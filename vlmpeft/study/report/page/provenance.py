"""Where the numbers of a page come from: how many runs, how long, which settings, which machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vlmpeft.study.report.plots.view import RowRuns, View
from vlmpeft.study.report.records import BASE_ROW, Study
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.settings import flat, split_common, written

# of a config: what differs between the seeds of a row, or between machines
_NOT_SETTINGS = ("seed_everything", "run_name", "runs_dir", "resume", "config")


@dataclass(frozen=True)
class Settings:
    """Settings as lines: the common ones, and what rows and tasks have beside them.

    Args:
        common: `key: value` of every row.
        rows: (title, what that row has).
        tasks: (name, what runs on that task and base have).
    """

    common: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    tasks: tuple[tuple[str, tuple[str, ...]], ...]


def summary(study: Study) -> str:
    """What the study is, in a paragraph."""
    info = study.info
    parts = [
        _count(len(info.rows), "row"),
        _count(len(info.tasks), "task") + f" ({', '.join(info.tasks)})",
        _count(len(info.bases), "base") + f" ({', '.join(info.bases)})",
        f"seeds {', '.join(map(str, info.seeds))}" if info.seeds else "no seed",
    ]
    finished = sum(run.row != BASE_ROW for run in study.runs)
    failed = len(study.failed) + len(study.damaged)
    runs = f"{_count(finished, 'run')} finished, {failed} failed"
    searched = f", {_count(len(study.searched), 'run')} of a search" if study.searched else ""
    hours = sum(map(run_seconds, (*study.runs, *study.searched))) / 3600
    return f"{'; '.join(parts)}. {runs}{searched}; {hours:.3g} hours of computing."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def run_seconds(run: Run) -> float:
    """Seconds that a run took, loading and scoring included."""
    seconds = run.record.get("seconds") or {}
    return float(sum(value for value in seconds.values() if isinstance(value, int | float)))


def settings_of(views: list[View]) -> Settings:
    """Settings of rows, from the first record of each, and of tasks, from the first record on each."""
    rows: dict[str, RowRuns] = {}
    for view in views:
        for one in view.rows:
            rows.setdefault(one.row.name, one)
    ordered = sorted(rows.values(), key=lambda one: one.position)
    common, beside = split_common([_settings(one.runs[0]) for one in ordered])
    titles = [one.row.title for one in ordered]
    _, of_tasks = split_common([_settings(view.rows[0].runs[0]) for view in views])
    places = [f"{view.task} on {view.base}" for view in views] if len(views) > 1 else []
    return Settings(
        _lines(common),
        tuple(zip(titles, map(_lines, beside), strict=True)),
        tuple(zip(places, map(_lines, of_tasks), strict=False)),
    )


def _settings(run: Run) -> dict[str, Any]:
    config = flat(run.record.get("config") or {})
    return {key: value for key, value in config.items() if key not in _NOT_SETTINGS}


def _lines(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}: {written(value)}" for key, value in settings.items())


def environment(study: Study) -> dict[str, list[str]]:
    """What runs were made with: name -> its values, each with the number of runs if there are several."""
    counts: dict[str, Counter[str]] = {}
    for run in study.runs:
        for name, value in _made_with(run):
            counts.setdefault(name, Counter())[value] += 1
    return {
        name: [value if len(found) == 1 else f"{value} ({_count(n, 'run')})" for value, n in found.items()]
        for name, found in counts.items()
    }  # fmt: skip


def _made_with(run: Run) -> Iterator[tuple[str, str]]:
    git = run.record.get("git") or {}
    if git.get("commit"):
        yield "git commit", f"{git['commit']}{', with changes' if git.get('dirty') else ''}"
    yield "device", str(run.record.get("device"))
    base = run.record.get("base") or {}
    yield f"base {run.base}", f"{base.get('id')}, fingerprint {base.get('fingerprint')}"
    for name, version in (run.record.get("versions") or {}).items():
        yield str(name), str(version)
