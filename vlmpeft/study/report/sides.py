"""The two sides of a comparison: a run, an adapter in its run folder, or a row of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.records import read_items, read_record
from vlmpeft.study.report.records import BASE_ROW, read_study
from vlmpeft.study.report.run import Run, scores_of

Item = Mapping[str, Any]
ITEMS, MANIFEST, ADAPTER = "items.jsonl.gz", "manifest.json", "adapter"


@dataclass(frozen=True)
class Side:
    """What is compared: the runs of a row with all that is known of their items.

    Args:
        name: as it was given.
        runs: one for each seed.
        items: of each run, in the order of ids.
    """

    name: str
    runs: tuple[Run, ...]
    items: tuple[tuple[Item, ...], ...]


def find_runs(text: str) -> list[Run]:
    """The runs that a word of the command line stands for.

    Args:
        text: a run folder, an adapter folder in one, or STUDY:ROW[:TASK[:BASE]].

    Raises:
        UserError: it stands for none, or for runs of several tasks.
    """
    folder = Path(text)
    if (folder / "result.json").is_file():
        return [_read_run(folder)]
    if (folder / MANIFEST).is_file():
        if folder.name == ADAPTER and (folder.parent / "result.json").is_file():
            return [_read_run(folder.parent)]
        raise UserError(
            f"adapter {text} is not in a run folder, so there are no items of it; give --data FILE to score it on"
        )
    study, _, row = text.partition(":")
    if row and Path(study).is_dir():
        return _row_of(study, *row.split(":"))
    if folder.is_dir():
        raise UserError(
            f"{text} is no run and no adapter; of a study give a row: {text.rstrip('/')}:ROW"
        )
    if text == BASE_ROW:
        raise UserError("base has no items of its own; give --data FILE to score it on")
    raise UserError(f"{text} does not exist; give a run folder, an adapter folder or STUDY:ROW")


def read_side(text: str) -> Side:
    """Runs and their items.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    runs = find_runs(text)
    return Side(text, tuple(runs), tuple(_read_items(run.folder / ITEMS) for run in runs))


def check_same_questions(a: Side, b: Side) -> None:
    """All runs have the same items, by id, with the same expected answers.

    Raises:
        UserError: they have not; with how many and which.
    """
    first = {str(item["id"]): item for item in a.items[0]}
    pairs = [*zip(a.runs, a.items, strict=True), *zip(b.runs, b.items, strict=True)]
    for run, items in pairs[1:]:
        found = {str(item["id"]): item for item in items}
        both = first.keys() & found.keys()
        problems = {
            f"only in {a.runs[0].folder}": first.keys() - found.keys(),
            f"only in {run.folder}": found.keys() - first.keys(),
            "with other expected answers": {
                n for n in both if _expected(first[n]) != _expected(found[n])
            },
        }
        told = [f"{_named(ids)} {what}" for what, ids in problems.items() if ids]
        if told:
            raise UserError(
                f"compare: {a.runs[0].folder} and {run.folder} were scored on other items: {'; '.join(told)}; "
                "score both on one file with --data FILE"
            )


def with_scores(side: Side, scores: Callable[[Item], Mapping[str, float]]) -> Side:
    """The same side, whose items have these scores and no others."""
    runs = (
        run.with_items(scores_of({**item, "scores": scores(item)} for item in items))
        for run, items in zip(side.runs, side.items, strict=True)
    )
    return Side(side.name, tuple(runs), side.items)


def _row_of(study: str, row: str, task: str | None = None, *base: str) -> list[Run]:
    read = read_study(study)
    rows = list(dict.fromkeys(run.row for run in read.runs))
    if row not in rows:
        raise UserError(
            f"study {study} has no finished run of row {row!r}.{did_you_mean(row, rows)}"
        )
    runs = read.of(row, task, ":".join(base) or None)
    places = list(dict.fromkeys((run.task, run.base) for run in runs))
    if len(places) != 1:
        known = places or list(dict.fromkeys((r.task, r.base) for r in read.of(row)))
        choices = ", ".join(f"{study}:{row}:{task}:{base}" for task, base in known)
        raise UserError(f"{study}:{row} has runs of several tasks or bases; give one of {choices}")
    return runs


def _read_run(folder: Path) -> Run:
    record = read_record(folder)
    assert record is not None, f"{folder} has a result.json"
    if record["status"] != "done":
        raise UserError(f"run {folder} is not finished ({record['status']}); compare finished runs")
    return Run(folder, record)


def _read_items(path: Path) -> tuple[Item, ...]:
    try:
        items = sorted(read_items(path), key=lambda item: str(item["id"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"items {path} cannot be read: {error}") from error
    if not items:
        raise UserError(f"items {path}: there is none in it")
    return tuple(items)


def _expected(item: Item) -> Sequence[str]:
    return item.get("references") or [item["expected"]]


def _named(ids: set[str], most: int = 3) -> str:
    return f"{len(ids)} ({', '.join(sorted(ids)[:most])}{', ...' if len(ids) > most else ''})"
