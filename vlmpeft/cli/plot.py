"""`plot`: the plots of a study's records, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from vlmpeft.runtime.visible import visible
from vlmpeft.study.report.plots.drawing import draw, write_plots
from vlmpeft.study.report.records import read_study


def plot_study(
    folder: Path, kinds: list[str], out: Path | None, metrics: list[str], tasks: list[str]
) -> None:
    """Write the plots and print where they are, and which kinds were left out for which reason.

    Args:
        folder: of the study.
        kinds: of plots; none is all that the records allow.
        out: folder for the files; default `plots/` of the study.
        metrics: what rows are compared by; none is the primary one.
        tasks: only these; none is all.
    """
    drawn = draw(read_study(folder), kinds, metrics, tasks)
    for path in write_plots(drawn, out or folder / "plots"):
        print(visible(str(path)))  # noqa: T201
    for line in drawn.left_out:
        print(visible(f"left out: {line}"))  # noqa: T201
