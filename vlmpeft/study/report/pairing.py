"""The items of runs side by side: which scores belong together, and which items are of one cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.study.report.run import Items, Run


@dataclass(frozen=True)
class Table:
    """Sums of scores: the items of a cluster are one column, the runs of a row are one matrix.

    Args:
        sums: of each row (S, C).
        sizes: items of each cluster, (C,).
    """

    sums: tuple[np.ndarray, ...]
    sizes: np.ndarray


def tabulate(rows: Sequence[Sequence[Run]], metric: str, cluster: str) -> Table:
    """The scores of rows whose runs were scored on the same items; items that a run has no score for are left out.

    Args:
        rows: the runs of each row.
        metric: name of a score of items.
        cluster: image, or a field of the items.

    Raises:
        UserError: the items differ, or none has that score or that field.
    """
    runs = [run for row in rows for run in row]
    first = runs[0]
    for run in runs[1:]:
        check_same_items(first, run)
    scores = [np.stack([_scores(run, metric) for run in row]) for row in rows]  # (S, N) each
    there = np.isfinite(np.concatenate(scores)).all(0)
    if not there.any():
        raise UserError(
            f"metric {metric} is for none of the items of {first.folder}; choose another"
        )
    codes = _codes(first, cluster)[there]
    kept, codes = np.unique(codes, return_inverse=True)
    count = len(kept)
    sums = [
        np.stack([np.bincount(codes, line, minlength=count) for line in matrix[:, there]])
        for matrix in scores
    ]
    return Table(tuple(sums), np.bincount(codes, minlength=count).astype(float))


def check_same_items(a: Run, b: Run) -> None:
    """Two runs have the same items.

    Raises:
        UserError: they have not; with how many and which.
    """
    if a.items.ids == b.items.ids:
        return
    only_a, only_b = {*a.items.ids} - {*b.items.ids}, {*b.items.ids} - {*a.items.ids}
    raise UserError(
        f"runs {a.folder} and {b.folder} were scored on other items: {_named(only_a)} only in the first, "
        f"{_named(only_b)} only in the second; compare runs of the same data"
    )


def item_metrics(run: Run) -> tuple[str, ...]:
    """The metrics that a run has scores of single items of."""
    return tuple(run.items.scores)


def is_corpus_level(run: Run, metric: str) -> bool:
    """Whether the record's score is more than the mean of the items' scores, as BLEU's is; then statistics are of that mean."""
    value = run.score(metric)
    scores = run.items.scores.get(metric)
    if scores is None or not np.isfinite(value) or not np.isfinite(scores).any():
        return False
    return abs(value - float(np.nanmean(scores))) > 1e-6


def _scores(run: Run, metric: str) -> np.ndarray:
    found = run.items.scores.get(metric)
    if found is None:
        raise UserError(
            f"items of {run.folder} have no score {metric!r}.{did_you_mean(metric, run.items.scores)}"
        )
    return found


def _codes(run: Run, cluster: str) -> np.ndarray:
    """A number for each item, equal within a cluster; (N,)."""
    return np.unique(np.array(cluster_names(run.items, cluster, run)), return_inverse=True)[1]


def cluster_names(items: Items, cluster: str, run: Run) -> Sequence[str]:
    """The cluster of each item, (N,); an item without the field is one of its own.

    Raises:
        UserError: no item has that field.
    """
    if cluster == "image":
        return items.clusters
    known = sorted({name for fields in items.fields for name in fields})
    if cluster not in known:
        raise UserError(
            f"cluster: {cluster!r} is no field of the items of {run.folder}.{did_you_mean(cluster, [*known, 'image'])}"
        )
    pairs = zip(items.fields, items.ids, strict=True)
    return [str(fields[cluster]) if cluster in fields else f"\0{own}" for fields, own in pairs]


def _named(ids: set[str], most: int = 3) -> str:
    shown = ", ".join(sorted(ids)[:most])
    return f"{len(ids)} ({shown}{', ...' if len(ids) > most else ''})" if ids else "none"
