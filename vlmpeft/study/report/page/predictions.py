"""The worst predictions of a row: what was asked, expected and generated, with the picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import read_items
from vlmpeft.study.report.plots.view import View
from vlmpeft.study.report.run import Run

Thumbnails = Callable[
    [Run, str], str
]  # (run, label of a picture) -> data URI; UserError if it cannot be had

MOST, FEWEST = 6, 2  # predictions of a row
_ALTOGETHER = 240
_LONGEST = 600  # characters of a text
_PICTURES = 4  # of a prediction


@dataclass(frozen=True)
class Picture:
    """A picture of an item; without a source there is a reason."""

    label: str
    source: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Prediction:
    """An item and what a run answered."""

    id: str
    prompt: str
    expected: str
    generated: str
    score: float
    loss: float
    is_cut: bool
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Worst:
    """The worst predictions of one run of a row.

    Args:
        row: title of the row.
        seed: of the run.
        items: how many the run answered.
        wrong: how many of them do not have the full score.
        predictions: the worst of them, the worst first.
        problem: why there are none.
    """

    row: str
    seed: int | None
    items: int = 0
    wrong: int = 0
    predictions: tuple[Prediction, ...] = ()
    problem: str = ""


def worst_of(view: View, thumbnails: Thumbnails | None, cells: int) -> Iterator[Worst]:
    """The worst predictions of every row's first seed.

    Args:
        view: task and base.
        thumbnails: gives pictures; None leaves them out.
        cells: rows of all views together, which share what a page can hold.
    """
    most = max(FEWEST, min(MOST, _ALTOGETHER // max(1, cells)))
    for one in view.rows:
        run = one.runs[0]
        try:
            items = read_items(run.folder / "items.jsonl.gz")
            yield _worst(one.row.title, run, items, view, most, thumbnails)
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
            yield Worst(one.row.title, run.seed, problem=f"items.jsonl.gz cannot be read: {error}")


def _worst(
    title: str,
    run: Run,
    items: Sequence[Mapping[str, Any]],
    view: View,
    most: int,
    thumbnails: Thumbnails | None,
) -> Worst:
    scored = [item for item in items if math.isfinite(item["scores"].get(view.metric, math.nan))]
    wrong = [item for item in scored if not _is_right(item, view)]
    sign = -1 if view.is_lower_better else 1
    wrong.sort(key=lambda i: (sign * i["scores"][view.metric], -float(i["loss"]), str(i["id"])))
    predictions = tuple(_prediction(run, item, view, thumbnails) for item in wrong[:most])
    return Worst(title, run.seed, len(scored), len(wrong), predictions)


def _is_right(item: Mapping[str, Any], view: View) -> bool:
    """A full score, of a metric that has one."""
    return view.unit.name == "%" and item["scores"][view.metric] >= 1


def _prediction(
    run: Run, item: Mapping[str, Any], view: View, thumbnails: Thumbnails | None
) -> Prediction:
    labels = [str(label) for label in item.get("image") or ()]
    return Prediction(
        id=str(item["id"]),
        prompt=shortened(item["prompt"]),
        expected=shortened(item["expected"]),
        generated=shortened(item["generated"]),
        score=float(item["scores"][view.metric]),
        loss=float(item["loss"]),
        is_cut=item.get("finish_reason") == "length",
        pictures=tuple(_picture(run, label, thumbnails) for label in labels[:_PICTURES]),
    )


def _picture(run: Run, label: str, thumbnails: Thumbnails | None) -> Picture:
    if thumbnails is None:
        return Picture(label)
    try:
        return Picture(label, thumbnails(run, label))
    except UserError as error:
        return Picture(label, reason=str(error))


def shortened(text: object) -> str:
    """A text of at most 600 characters.

    >>> shortened("gear"), len(shortened("x" * 10_000))
    ('gear', 603)
    """
    text = str(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
