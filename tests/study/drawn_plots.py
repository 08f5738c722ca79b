"""Records to draw, and what was drawn."""

from vlmpeft.study.report.plots.drawing import draw
from vlmpeft.study.report.records import read_study

from .records import make_record

SCORES = {"small": [0.5, 0.6, 0.7], "large": [0.7, 0.9, 0.8], "wasteful": [0.3, 0.35, 0.4]}
SIZES = {"small": 1000, "large": 50_000, "wasteful": 80_000}


def records_of(scores, **more):
    """One record a row and seed, of row -> scores by seed, and of row -> keys in `more`."""
    return [
        make_record(row, seed, score=score, **{key: of[row] for key, of in more.items()})
        for row, values in scores.items()
        for seed, score in enumerate(values)
    ]


def drawn(folder, kind, **options):
    """The axes of the only plot of a kind."""
    (plot,) = draw(read_study(folder), [kind], **options).plots
    return plot.figure.axes


def lines(axes):
    """Lines of rows, by their names."""
    return {line.get_gid(): line for line in axes.get_lines() if line.get_gid()}


def line_called(axes, label):
    return next(line for line in axes.get_lines() if line.get_label() == label)
