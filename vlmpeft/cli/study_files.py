"""What a finished study leaves beside its records: tables, plots and the page, each a function of the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlmpeft.cli.table import written
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import write_atomically
from vlmpeft.study.report.appendix.sections import make_appendix
from vlmpeft.study.report.layout import make_table
from vlmpeft.study.report.recommendation import recommend
from vlmpeft.study.report.records import Study, read_study
from vlmpeft.study.report.spec import Spec, read_spec

FORMATS = ("md", "tex", "csv", "html")
SPEC = "paper.yaml"  # of a study's folder: what its table looks like, if it is there


def write_study_files(folder: Path) -> list[Path]:
    """Write table.md, .tex, .csv, .html, appendix.md, plots/ and report.html; returns what was written.

    Raises:
        UserError: no record, or a folder that cannot be written.
    """
    from vlmpeft.study.pictures import DataThumbnails
    from vlmpeft.study.report.page.report import write_report

    study = read_study(folder)
    paths = [*_tables(study), *write_study_plots(study)]
    write_report(study, folder / "report.html", DataThumbnails())
    return [*paths, folder / "report.html"]


def write_recommendations(folder: Path) -> Iterator[str]:
    """Write recommended-TASK-BASE.yaml of a finished study; yields what is recommended, line by line."""
    study = read_study(folder)
    for found in recommend(study):
        path = folder / f"recommended-{found.task}-{found.base}.yaml"
        write_atomically(path, found.text(study.info.name).encode())
        yield from found.lines()
        yield f"  python -m vlmpeft fit --config {path}"


def study_spec(folder: Path) -> Spec:
    """What the tables of a study look like, as the spec in its folder says."""
    path = folder / SPEC
    return read_spec(path) if path.is_file() else Spec()


def table_texts(study: Study) -> dict[str, str]:
    """File name -> text of the study's tables."""
    spec = study_spec(study.folder)
    table = make_table(study, spec)
    texts = {f"table.{name}": written([table], name, study) for name in FORMATS}
    return texts | {"appendix.md": written([*make_appendix(study, spec)], "md", study)}


def _tables(study: Study) -> Iterator[Path]:
    for name, text in table_texts(study).items():
        path = study.folder / name
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
        yield path


def write_study_plots(study: Study, folder: Path | None = None) -> list[Path]:
    """The plots that the records allow; none if no run has finished."""
    from vlmpeft.study.report.plots.drawing import draw, write_plots

    try:
        drawn = draw(study)
    except UserError:
        return []
    return list(write_plots(drawn, folder or study.folder / "plots"))
