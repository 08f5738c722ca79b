"""`report`: a study as one HTML page."""

from __future__ import annotations

from pathlib import Path

from vlmpeft.runtime.visible import visible
from vlmpeft.study.pictures import DataThumbnails
from vlmpeft.study.report.page.report import write_report
from vlmpeft.study.report.records import read_study


def report_study(folder: Path, out: Path | None, *, pictures: bool) -> None:
    """Write the page and print where it is.

    Args:
        folder: of the study.
        out: the file; default `report.html` in the folder.
        pictures: whether pictures of the data are on it.
    """
    path = out or folder / "report.html"
    write_report(read_study(folder), path, DataThumbnails() if pictures else None)
    print(visible(str(path)))  # noqa: T201
