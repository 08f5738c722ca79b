"""What a study left on disk, as values: its rows, its runs, the scores of their items."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.records import SCHEMA, read_record, write_json
from vlmpeft.study.report.record_shape import SPLITS, check_record, check_study
from vlmpeft.study.report.scored_items import read_scored

STUDY_FILE = "study.json"
RUNS, SEARCH = "runs", "search"
BASE_ROW = "base"  # the row of the untouched base: zero-shot


@dataclass(frozen=True)
class Row:
    """A row of a study.

    Args:
        name: in records and on the command line.
        title: in tables.
        group: rows of one group stand together.
        variables: value of each grid and zip variable, by its label.
        illegal: task or base it cannot be run on -> the reason; "" is every one.
    """

    name: str
    title: str
    group: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    illegal: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyInfo:
    """`study.json`: what a study is made of, in the order of its tables."""

    name: str
    title: str
    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    bases: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str | None = None
    full: str | None = None
    margin: float = 0.01
    cluster: str = "image"
    search: Mapping[str, Any] | None = None
    match_parameters: Mapping[str, Any] | None = None
    recommend: bool = False

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            UserError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(
            f"study {self.name} has no row {name!r}.{did_you_mean(name, [r.name for r in self.rows])}"
        )


@dataclass(frozen=True)
class Items:
    """The scores of one run's items, in the order of their ids.

    Args:
        ids: of the items, (N,).
        clusters: what of them is not independent: the picture each is about, (N,).
        scores: metric -> (N,), nan where a metric is not for an item.
        fields: per item, the fields of its conversation.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    fields: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Run:
    """One run folder: its record, and on demand the scores of its items."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def row(self) -> str:
        return self.record.get("row") or self.folder.name.rsplit("-seed", 1)[0]

    @property
    def task(self) -> str:
        return str(self.record.get("task") or self._configured("data", "train"))

    @property
    def base(self) -> str:
        base = self.record.get("base") or {}
        name = self.record.get("base_name") or base.get("id")
        return str(name or self._configured("model", "base", "path"))

    @property
    def seed(self) -> int | None:
        return self.record.get("seed", self._configured("seed_everything"))

    def _configured(self, *path: str) -> Any:
        """What the config says, which is all that a failed `fit` leaves."""
        value: Any = self.record.get("config")
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def is_done(self) -> bool:
        return self.record["status"] == "done"

    @property
    def primary(self) -> str:
        return self.record["primary"]

    @property
    def split(self) -> str:
        """The reported split: test, else val."""
        tuned = self.record["metrics"]["tuned"]
        return next(split for split in SPLITS if split in tuned)

    def score(
        self, metric: str | None = None, split: str | None = None, state: str = "tuned"
    ) -> float:
        """A score of the record; nan if it has none.

        Args:
            metric: default the primary one.
            split: default the reported one.
            state: tuned or base.
        """
        scores = self.record["metrics"].get(state, {}).get(split or self.split, {})
        return float(scores.get(metric or self.primary, float("nan")))

    @cached_property
    def items(self) -> Items:
        """The scores of the reported split, item by item.

        Raises:
            UserError: they are not there, or damaged.
        """
        return read_scores(self.folder / "items.jsonl.gz")

    def with_items(self, items: Items) -> Run:
        """The same run with these scores of items in place of those on disk."""
        other = Run(self.folder, self.record)
        other.__dict__["items"] = items
        return other


def read_scores(path: Path, cluster: str = "image") -> Items:
    """The scores of an `items.jsonl.gz`.

    Args:
        path: of the file.
        cluster: image, or a field whose equal values belong together.

    Raises:
        UserError: it is not there, or damaged.
    """
    try:
        return scores_of(read_scored(path), cluster)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"items {path} cannot be read: {error}; remove the run's folder and run the study again"
        ) from error


def scores_of(items: Iterable[Mapping[str, Any]], cluster: str = "image") -> Items:
    """The scores of items as `items.jsonl.gz` has them.

    Args:
        items: in any order.
        cluster: image, or a field whose equal values belong together.
    """
    items = sorted(items, key=lambda item: str(item["id"]))
    names = dict.fromkeys(chain.from_iterable(item["scores"] for item in items))
    scores = {n: np.array([i["scores"].get(n, np.nan) for i in items], float) for n in names}
    ids = tuple(str(item["id"]) for item in items)
    clusters = tuple(_cluster(item, cluster) for item in items)
    return Items(ids, clusters, scores, tuple(item.get("fields") or {} for item in items))


def _cluster(item: Mapping[str, Any], by: str) -> str:
    if by != "image":
        return str(item["fields"].get(by, item["id"]))
    return " ".join(item["image"]) or str(item["id"])


@dataclass(frozen=True)
class Study:
    """A study's folder.

    Args:
        folder: where it is.
        info: what it is made of.
        runs: finished runs.
        failed: runs that ended in an error.
        damaged: records that cannot be read, with the reason.
        searched: finished runs of the search for settings.
        search_failed: runs of the search that ended in an error.
    """

    folder: Path
    info: StudyInfo
    runs: tuple[Run, ...]
    failed: tuple[Run, ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()
    searched: tuple[Run, ...] = ()
    search_failed: tuple[Run, ...] = ()

    def of(self, row: str, task: str | None = None, base: str | None = None) -> list[Run]:
        """The finished runs of a row, by seed."""
        found = [
            run
            for run in self.runs
            if run.row == row and task in (None, run.task) and base in (None, run.base)
        ]
        return sorted(found, key=lambda run: run.seed or 0)


def read_study(folder: Path | str) -> Study:
    """The records of a study, or of any folder of run folders.

    Args:
        folder: `results/<study>/`, or a folder of run folders such as `runs/`.

    Raises:
        UserError: it is not there, or holds no record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"study {folder} is not a folder; give results/NAME")
    runs, damaged = _read_runs(folder / RUNS if (folder / RUNS).is_dir() else folder)
    searched, _ = _read_runs(folder / SEARCH)
    done = tuple(run for run in runs if run.is_done)
    if not runs and not damaged:
        raise UserError(
            f"study {folder} has no record yet; python -m vlmpeft sweep STUDY.yaml makes them"
        )
    info = (
        read_info(folder)
        if (folder / STUDY_FILE).is_file()
        else _info_of(folder.resolve().name, runs)
    )
    failed = tuple(run for run in runs if not run.is_done)
    return Study(
        folder,
        info,
        done,
        failed,
        tuple(damaged),
        tuple(run for run in searched if run.is_done),
        tuple(run for run in searched if not run.is_done),
    )


def _read_runs(folder: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    runs, damaged = [], []
    for path in sorted(folder.rglob("result.json")) if folder.is_dir() else ():
        try:
            record = read_record(path.parent)
            if record and record["status"] == "done":
                check_record(record, path)
        except UserError as error:
            damaged.append((path, str(error)))
            continue
        if record:
            runs.append(Run(path.parent, record))
    return runs, damaged


def read_info(folder: Path) -> StudyInfo:
    """`study.json` of a folder.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / STUDY_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_study(content, path)
        rows = tuple(Row(**row) for row in content.pop("rows"))
        lists = {key: tuple(content.pop(key)) for key in ("tasks", "bases", "seeds")}
        content.pop("schema", None)
        known = StudyInfo.__dataclass_fields__
        return StudyInfo(rows=rows, **lists, **{k: v for k, v in content.items() if k in known})
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"study file {path} cannot be read: {error}; run the study again"
        ) from error


def write_info(folder: Path, info: StudyInfo) -> None:
    """Write `study.json`, as a whole.

    Raises:
        UserError: the folder is another study's, or cannot be written.
    """
    check_folder(folder, info.name)
    write_json(folder / STUDY_FILE, {"schema": SCHEMA, **asdict(info)})


def check_folder(folder: Path, name: str) -> None:
    """Refuse the folder of another study, or of runs that no study made.

    Raises:
        UserError: it is one; where the folder should be there is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"results folder {folder} is a file; give another --out")
    if (folder / STUDY_FILE).is_file():
        other = read_info(folder).name
        if other != name:
            raise UserError(
                f"results folder {folder} holds the records of study {other!r}, not of {name!r}; give another --out"
            )
    elif folder.is_dir() and next(folder.rglob("result.json"), None):
        raise UserError(
            f"results folder {folder} holds records and no {STUDY_FILE}, so no study made it; give another --out"
        )


def _info_of(name: str, runs: Iterable[Run]) -> StudyInfo:
    """What there is in a folder of runs that no study made."""
    runs = list(runs)
    rows = tuple(Row(row, row) for row in dict.fromkeys(run.row for run in runs) if row != BASE_ROW)
    tasks = tuple(dict.fromkeys(run.task for run in runs))
    bases = tuple(dict.fromkeys(run.base for run in runs))
    return StudyInfo(name, name, rows, tasks, bases, tuple(sorted({run.seed or 0 for run in runs})))
