"""All plots that a study's records allow, and the reasons for those they do not."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.records import write_atomically
from vlmpeft.study.report.plots.canvas import as_png, as_svg, settle, style
from vlmpeft.study.report.plots.view import NotDrawableError, View, views
from vlmpeft.study.report.records import Study

_PLACE = "vlmpeft.study.report.plots."


@dataclass(frozen=True)
class Kind:
    """A kind of plot.

    Args:
        place: of its function, in this folder.
        title: what it shows.
        is_of_scores: whether another metric gives another plot.
    """

    place: str
    title: str
    is_of_scores: bool = True


KINDS = {
    "pareto": Kind("pareto.draw_pareto", "Score against trained parameters"),
    "heat_map": Kind("heat_map.draw_heat_map", "Component x method"),
    "rank": Kind("curves.draw_ranks", "Score over rank"),
    "data_scaling": Kind("curves.draw_data_scaling", "Score over training data"),
    "forgetting": Kind("forgetting.draw_forgetting", "Forgetting against learning"),
    "loss": Kind("loss_curves.draw_losses", "Training loss over steps", is_of_scores=False),
    "spectrum": Kind("spectra.draw_spectra", "Singular values of dW", is_of_scores=False),
}


@dataclass(frozen=True)
class Plot:
    """A plot of one kind, task and base.

    Args:
        kind: of KINDS.
        name: of its files, without ending.
        view: what it shows.
        figure: as drawn.
    """

    kind: str
    name: str
    view: View
    figure: Figure

    @property
    def title(self) -> str:
        """What it shows, in words."""
        return f"{KINDS[self.kind].title}, {self.view.task}"


@dataclass(frozen=True)
class Drawn:
    """Plots, and for each kind and task that is not among them the reason."""

    plots: tuple[Plot, ...]
    left_out: tuple[str, ...]


def draw(
    study: Study,
    kinds: Sequence[str] = (),
    metrics: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> Drawn:
    """Draw the kinds that the records allow.

    Args:
        study: the records.
        kinds: these; each has to be drawable for some task. Default all that are.
        metrics: what rows are compared by; default each task's primary one.
        tasks: only these.

    Raises:
        UserError: an unknown kind, task or metric; a kind that was asked for and cannot be drawn; no finished run.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"unknown plot {kind!r}.{did_you_mean(kind, KINDS)}")
    shown = [list(views(study, metric, tasks)) for metric in metrics or (None,)]
    if not shown[0]:
        raise UserError(f"study {study.folder} has no finished run to draw yet")
    plots, left_out = list[Plot](), list[str]()
    for kind in kinds or KINDS:
        chosen = shown if KINDS[kind].is_of_scores else shown[:1]
        found, reasons = _draw_kind(kind, [view for some in chosen for view in some], metrics)
        if kinds and not found:
            raise UserError(f"plot --kind {kind}: {'; '.join(reasons)}; leave it out")
        plots += found
        left_out += [f"{kind}: {reason}" for reason in reasons]
    return Drawn(tuple(plots), tuple(left_out))


def _draw_kind(
    kind: str, shown: Sequence[View], metrics: Sequence[str]
) -> tuple[list[Plot], list[str]]:
    module, _, function = KINDS[kind].place.partition(".")
    draw_one: Callable[[View], Figure] = getattr(importlib.import_module(_PLACE + module), function)
    plots, reasons = list[Plot](), dict[str, list[str]]()
    for view in shown:
        try:
            with style():
                figure = draw_one(view)
                settle(figure)
        except NotDrawableError as error:
            reasons.setdefault(str(error), []).append(view.task)
            continue
        plots.append(Plot(kind, _file_name(kind, view, metrics), view, figure))
    everywhere = len({view.task for view in shown})
    return plots, [
        reason if len({*tasks}) == everywhere else f"{reason} ({', '.join(dict.fromkeys(tasks))})"
        for reason, tasks in reasons.items()
    ]


def _file_name(kind: str, view: View, metrics: Sequence[str]) -> str:
    """Kind and task; base and metric where there are others."""
    parts = [kind, view.task]
    parts += [view.base] if len(view.study.info.bases) > 1 else []
    parts += [view.metric] if metrics and KINDS[kind].is_of_scores else []
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part)[:60] for part in parts)


def write_plots(drawn: Drawn, folder: Path) -> list[Path]:
    """Write each plot as PNG and SVG; returns the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for plot in drawn.plots:
        for ending, content in ((".png", as_png), (".svg", as_svg)):
            path = folder / f"{plot.name}{ending}"
            write_atomically(path, content(plot.figure))
            paths.append(path)
    return paths
