"""Conflict statistics as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmpeft.merging.conflicts import Conflict

# statistic -> (its name, smallest and largest value, colours that are dark where adapters disagree)
STATISTICS = {
    "cosine": ("mean cosine of the dW", -1.0, 1.0, "cividis"),
    "sign_disagreement": ("share of values whose signs disagree", 0.0, 1.0, "cividis_r"),
}


def draw_conflicts(found: Sequence[Conflict], path: Path) -> None:
    """A heat map for each statistic: components down, layers across; dark is conflict.

    Args:
        found: the statistics.
        path: of the PNG or SVG.
    """
    from matplotlib.figure import (
        Figure,
    )  # half a second, which a merge without a picture need not wait

    components = list(dict.fromkeys(c.component for c in found))
    layers = sorted({c.layer for c in found}, key=lambda layer: (layer is not None, layer))
    size = (max(4.5, 3.0 + 0.6 * len(layers)), 2 * (1.0 + 0.5 * len(components)))
    figure = Figure(figsize=size, dpi=144, layout="constrained")
    for axes, statistic in zip(figure.subplots(len(STATISTICS)), STATISTICS, strict=True):
        values = np.full((len(components), len(layers)), np.nan)
        for one in found:
            place = components.index(one.component), layers.index(one.layer)
            values[place] = getattr(one, statistic)
        _draw(axes, values, *STATISTICS[statistic])
        axes.set_yticks(range(len(components)), components)
        axes.set_xticks(range(len(layers)), ["-" if layer is None else layer for layer in layers])
        axes.set_xlabel("layer")
    figure.savefig(path)


def _draw(axes: Any, values: np.ndarray, title: str, low: float, high: float, colours: str) -> None:
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.set_title(title, loc="left")
    axes.figure.colorbar(image, ax=axes)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.46 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7)
