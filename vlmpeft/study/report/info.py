"""What a study is made of: its rows, tasks, bases and seeds, as `study.json` keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.records import SCHEMA, write_json
from vlmpeft.study.report.record_shape import check_study

STUDY_FILE = "study.json"


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
