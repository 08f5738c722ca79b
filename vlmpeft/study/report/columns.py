"""The columns that a table can have: what each shows of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from vlmpeft.study.report import cost_cells, score_cells
from vlmpeft.study.report.entries import Entry
from vlmpeft.study.report.table import Cell

Scope = Literal["row", "base", "task", "metric"]


@dataclass(frozen=True)
class Kind:
    """One kind of column.

    Args:
        title: its header. `{metric}` is the metric's name; of a metric in percent `{unit}` is ", %" and `{points}`
            ", points", of another they are nothing.
        scope: what its cells are of, beside the row: nothing, a base, a task, a metric.
        cell: what it shows.
        about: a line of documentation.
        is_text: left-aligned.
    """

    title: str
    scope: Scope
    cell: Callable[[Entry, int], Cell]
    about: str
    is_text: bool = False


COLUMNS: Mapping[str, Kind] = {
    "row": Kind("", "row", cost_cells.title, "the row's title", True),
    "group": Kind("group", "row", cost_cells.group, "its group; without this column a heading", True),
    "trainable": Kind("trainable", "base", cost_cells.trainable, "trainable parameters"),
    "percent": Kind("%", "base", cost_cells.percent, "100 x trainable / (base + added)"),
    "score": Kind("{metric}{unit}", "metric", score_cells.score, "mean +- sd over seeds"),
    "n": Kind("n", "task", score_cells.seeds, "finished seeds, of how many if some are missing"),
    "difference": Kind(
        "difference{points} [95 %]", "metric", score_cells.difference, "from the reference, with interval"
    ),
    "p": Kind("p (Holm)", "metric", score_cells.p_holm, "permutation p, adjusted within the family"),
    "p_raw": Kind("p", "metric", score_cells.p_raw, "the same, not adjusted"),
    "percent_of_full": Kind(
        "% of full", "metric", score_cells.percent_of_full, "mean score in percent of full fine-tuning's"
    ),
    "chance_corrected": Kind(
        "chance-corrected{unit}", "metric", score_cells.chance_corrected, "where ChanceCorrected was recorded"
    ),
    "blank": Kind("blank images{unit}", "metric", score_cells.control("blank"), "score on grey pictures"),
    "shuffled": Kind(
        "shuffled images{unit}", "metric", score_cells.control("shuffled"), "score on other items' pictures"
    ),
    "retention": Kind(
        "source task{unit}", "metric", score_cells.retention, "score on the source task after training"
    ),
    "retention_change": Kind(
        "source change{points}", "metric", score_cells.retention_change, "the same, less before training"
    ),
    "val": Kind("val{unit}", "metric", score_cells.validation, "score on val"),
    "loss": Kind("loss", "task", score_cells.loss, "mean -log p of a reference's token on the reported split"),
    "learning_rate": Kind("learning rate", "task", cost_cells.learning_rate, "of each component", True),
    "search": Kind("settings tried", "task", cost_cells.tried, "settings compared before this one"),
    "steps": Kind("steps", "task", cost_cells.steps, "optimizer steps"),
    "fit_seconds": Kind("fit, s", "task", cost_cells.seconds("fit"), "training, mean over seeds"),
    "score_seconds": Kind("score, s", "task", cost_cells.seconds("score"), "scoring, mean over seeds"),
    "load_seconds": Kind("load, s", "task", cost_cells.seconds("load"), "loading, mean over seeds"),
    "tokens_per_second": Kind(
        "tokens/s", "task", cost_cells.tokens_per_second, "supervised tokens a second of training"
    ),
    "memory": Kind("peak memory, GB", "task", cost_cells.memory, "most over seeds, 1e9 bytes"),
    "adapter_bytes": Kind("adapter, bytes", "base", cost_cells.adapter_bytes, "size of the adapter folder"),
}  # fmt: skip
DEFAULT = [
    "row",
    "trainable",
    "percent",
    "score",
    "n",
    "difference",
    "p",
    "percent_of_full",
    "blank",
    "retention",
    "retention_change",
]
