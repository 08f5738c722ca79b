"""The report of a study: one HTML file with tables, plots, predictions, settings and environment."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vlmpeft.runtime.records import write_atomically
from vlmpeft.runtime.visible import visible
from vlmpeft.study.report.convergence import Convergence, convergence, losses_of
from vlmpeft.study.report.formats.html_page import fragment
from vlmpeft.study.report.layout import make_table
from vlmpeft.study.report.page.predictions import Thumbnails, Worst, worst_of
from vlmpeft.study.report.page.provenance import environment, settings_of, summary
from vlmpeft.study.report.plots.canvas import as_svg
from vlmpeft.study.report.plots.drawing import KINDS, Drawn, Plot, draw
from vlmpeft.study.report.plots.view import View, views
from vlmpeft.study.report.records import Study


@dataclass(frozen=True)
class Picture:
    """A plot on the page.

    Args:
        kind: what it shows, in words.
        title: of this one.
        source: data URI.
        width: pixels.
    """

    kind: str
    title: str
    source: str
    width: int


@dataclass(frozen=True)
class Section:
    """What the page has of one task and base."""

    title: str
    convergence: list[Convergence]
    titles: dict[str, str]
    worst: list[Worst]


def write_report(study: Study, path: Path, thumbnails: Thumbnails | None = None) -> None:
    """Write the page.

    Args:
        study: the records.
        path: of the HTML file.
        thumbnails: gives the pictures of items; None leaves them out.

    Raises:
        UserError: it cannot be written.
    """
    write_atomically(path, report(study, thumbnails).encode("utf-8", "backslashreplace"))


def report(study: Study, thumbnails: Thumbnails | None = None) -> str:
    """The page as HTML. The same records and pictures give the same text."""
    from markupsafe import Markup

    found = list(views(study))
    drawn = draw(study) if found else Drawn((), ())
    cells = sum(len(view.rows) for view in found)
    return _environment().get_template("report.html.jinja").render(
        study=study,
        summary=summary(study),
        table=Markup(fragment([make_table(study)])) if found else None,
        pictures=list(map(_picture, drawn.plots)),
        left_out=drawn.left_out,
        sections=[_section(view, thumbnails, cells) for view in found],
        settings=settings_of(found),
        illegal=list(_illegal(study)),
        environment=environment(study),
    )  # fmt: skip


def _picture(plot: Plot) -> Picture:
    source = base64.b64encode(as_svg(plot.figure)).decode()
    width = round(96 * plot.figure.get_figwidth())
    return Picture(KINDS[plot.kind].title, plot.title, f"data:image/svg+xml;base64,{source}", width)


def _section(view: View, thumbnails: Thumbnails | None, cells: int) -> Section:
    losses = [(one.row.name, found) for one in view.rows if (found := losses_of(one.runs))]
    return Section(
        view.task if len(view.study.info.bases) == 1 else f"{view.task} on {view.base}",
        convergence(losses),
        {one.row.name: one.row.title for one in view.rows},
        list(worst_of(view, thumbnails, cells)),
    )


def _illegal(study: Study) -> Iterator[tuple[str, str, str]]:
    """(row, where, why) of what was not run because it cannot be."""
    for row in study.info.rows:
        yield from ((row.title, where, why) for where, why in row.illegal.items())


@cache
def _environment() -> Any:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    places = ("vlmpeft.study.report.page", "vlmpeft.study.report.formats")
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(place, "templates") for place in places]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = lambda text: visible(str(text))
    environment.filters["steps"] = lambda value: f"{value:,.0f}" if value == value else "-"
    return environment
