"""Singular values of dW: how much of its rank a row uses."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmpeft.study.report.plots.canvas import (
    Mark,
    figure_of,
    handle,
    legend_beside,
    log_heights,
    new_panels,
    shown,
)
from vlmpeft.study.report.plots.view import NotDrawableError, RowRuns, View
from vlmpeft.study.report.run import Run

MOST_VALUES = 64  # of a matrix, in spectrum.json
_COMPONENTS = ("vision", "projector", "language", "other")
_TICKS = [2**i for i in range(7)]
_SMALLEST = 1e-6  # of the largest singular value; what is below is rounding


def read_spectrum(run: Run) -> dict[str, np.ndarray]:
    """Parameter -> singular values of its dW, (at most 64,) descending; empty where none can be read."""
    try:
        content = json.loads((run.folder / "spectrum.json").read_text(encoding="utf-8"))
        found = {str(name): np.asarray(values, float) for name, values in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: v for name, v in found.items() if v.ndim == 1 and len(v) and v[0] > 0}


def component_of(run: Run, parameter: str) -> str:
    """The component whose longest root a parameter is under."""
    components: Mapping[str, Mapping] = run.record.get("components") or {}
    roots = [(root, name) for name, c in components.items() for root in c.get("roots") or ()]
    inside = [(len(root), name) for root, name in roots if f"{parameter}.".startswith(f"{root}.")]
    return max(inside)[1] if inside else "other"


def spectra_of(one: RowRuns) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Component -> (lower quartile, median, upper quartile) of sigma_i, each (64,), over matrices and seeds.

    Values that are 0 beside the largest one are nan: a matrix of rank r has r values.
    """
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for run in one.runs:
        for parameter, values in read_spectrum(run).items():
            padded = np.full(MOST_VALUES, np.nan)
            kept = values[:MOST_VALUES][values[:MOST_VALUES] > _SMALLEST * values[0]]
            padded[: len(kept)] = kept
            found[component_of(run, parameter)].append(padded)
    return {name: _quartiles(np.stack(matrices)) for name, matrices in found.items()}


def _quartiles(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 64) -> three of (64,); nan beyond the largest rank."""
    quartiles = np.full((3, matrices.shape[1]), np.nan)
    there = np.isfinite(matrices).any(0)
    quartiles[:, there] = np.nanquantile(matrices[:, there], (0.25, 0.5, 0.75), axis=0)
    return quartiles[0], quartiles[1], quartiles[2]


def draw_spectra(view: View) -> Figure:
    """Singular values of dW by their index, a panel a component.

    Raises:
        NotDrawableError: no run has a spectrum.
    """
    found = [(one, spectra) for one in view.rows if (spectra := spectra_of(one))]
    if not found:
        raise NotDrawableError("no run has a spectrum.json")
    components = [c for c in _COMPONENTS if any(c in spectra for _, spectra in found)]
    size = (1.0 + 3.2 * len(components), 4.2)
    every = new_panels(view.title, components, size)
    for axes, component in zip(every, components, strict=True):
        _set_scales(axes)
        for one, spectra in found:
            if component in spectra:
                _draw_row(axes, one, *spectra[component])
    every[0].set_ylabel("sigma_i of dW (log scale)\nmedian and quartiles over matrices and seeds")
    handles = [handle(Mark.of(one.position), one.row.title, is_line=True) for one, _ in found]
    legend_beside(every[-1], handles)
    return figure_of(every[0])


def _set_scales(axes: Axes) -> None:
    log_heights(axes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
    axes.minorticks_off()
    axes.set_xlabel("index i (log scale)")


def _draw_row(
    axes: Axes, one: RowRuns, low: np.ndarray, middle: np.ndarray, high: np.ndarray
) -> None:
    mark, index = Mark.of(one.position), np.arange(1, MOST_VALUES + 1)
    axes.fill_between(index, low, high, color=mark.colour, alpha=0.12, linewidth=0)
    marked = [tick - 1 for tick in _TICKS]
    axes.plot(
        index, middle, gid=shown(one.row.name), markevery=marked, markersize=4.5, **mark.curve
    )
