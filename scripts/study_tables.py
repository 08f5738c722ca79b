"""Tables and plots of the committed studies, each made anew from its records."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vlmpeft.cli.study_files import table_texts, write_study_plots
from vlmpeft.cli.table import written
from vlmpeft.study.report.layout import make_table
from vlmpeft.study.report.records import read_study
from vlmpeft.study.report.spec import Spec, read_spec

ROOT = Path(__file__).parent.parent
FRONT = ROOT / "scripts" / "front_page.yaml"


def studies() -> list[Path]:
    """The folders of the committed studies."""
    return sorted(path.parent for path in (ROOT / "results").glob("*/study.json"))


def study_files(folder: Path) -> dict[Path, bytes]:
    """Path -> content of every table and plot of a study, as its records give them."""
    study = read_study(folder)
    files = {
        folder / name: text.encode("utf-8", "backslashreplace")
        for name, text in table_texts(study).items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        for path in write_study_plots(study, Path(scratch)):
            files[folder / "plots" / path.name] = path.read_bytes()
    return files


def old_plots(folder: Path, made: dict[Path, bytes]) -> list[Path]:
    """Plots that the records do not give any more."""
    return [path for path in sorted((folder / "plots").glob("*")) if path not in made]


def front_page(name: str) -> str:
    """A study's table with the columns of the front page."""
    return _table(name, read_spec(FRONT))


def whole(name: str) -> str:
    """A study's table with every column that it has by default."""
    return _table(name, Spec())


def _table(name: str, spec: Spec) -> str:
    folder = ROOT / "results" / name
    if not (folder / "study.json").is_file():
        return f"No record yet: `python -m vlmpeft sweep {name}.yaml`."
    study = read_study(folder)
    return written([make_table(study, spec)], "md", study).rstrip()
