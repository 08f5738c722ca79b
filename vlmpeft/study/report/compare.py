"""Two sides compared: every metric, every group, every JSON field, and the items that got worse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.sides import Item, Side, check_same_questions, with_scores
from vlmpeft.study.report.statistics import Comparison, compare_rows, in_family
from vlmpeft.study.report.verdicts import direction

Columns = Callable[[Item], Mapping[str, float]]
_MOST_FIELDS = 40
_KIND = "kind"  # the field of the built-in tasks


@dataclass(frozen=True)
class Worse:
    """An item that got worse from a to b, in the mean over seeds.

    Args:
        id: of the item.
        images: its pictures' labels.
        prompt: the question.
        expected: the first reference.
        answer_a: of the run of a that is best at it.
        answer_b: of the run of b that is worst at it.
        change: b - a of its score.
    """

    id: str
    images: tuple[str, ...]
    prompt: str
    expected: str
    answer_a: str
    answer_b: str
    change: float


@dataclass(frozen=True)
class Differences:
    """Side b against side a.

    Args:
        a: the first side.
        b: the other one.
        primary: the metric of groups and of `worse`.
        metrics: metric -> comparison; one family for Holm.
        group_by: the field whose values are the groups.
        groups: METRIC[group] -> comparison by the primary metric; a family.
        fields: JSON field -> comparison of the share of items that have it right; a family.
        worse: items, the worst change first.
        num_worse: how many items got worse.
        num_better: how many got better.
        only: metrics that only one side has.
        cluster: what was resampled: image, or a field.
    """

    a: Side
    b: Side
    primary: str
    metrics: Mapping[str, Comparison]
    group_by: str | None
    groups: Mapping[str, Comparison]
    fields: Mapping[str, Comparison]
    worse: Sequence[Worse]
    num_worse: int
    num_better: int
    only: Sequence[str]
    cluster: str

    def named(self) -> dict[str, Comparison]:
        """Every comparison by the name that a gate calls it: METRIC, METRIC[group], json_fields.FIELD."""
        return {**self.groups, **self.fields, **self.metrics}


def compare_sides(
    a: Side,
    b: Side,
    *,
    metrics: Sequence[str] = (),
    group_by: str | None = None,
    fields: Columns | None = None,
    cluster: str = "image",
    margin: float = 0.01,
    most_worse: int = 10,
) -> Differences:
    """Compare two sides that answered the same items.

    Args:
        a: the reference.
        b: the other side.
        metrics: only these, the first is the primary one; default all that both have.
        group_by: field of items; default the one that a's run was grouped by, else kind.
        fields: an item's JSON fields, 1 where the answer has it right, 0 where not.
        cluster: items of one value are not independent: image, or a field.
        margin: of equivalence.
        most_worse: items that are listed.

    Raises:
        UserError: other items or expected answers, no such metric, field or cluster.
    """
    check_same_questions(a, b)
    a, b = (with_scores(side, lambda item: item["scores"]) for side in (a, b))
    names, only = _metrics(a.runs[0], b.runs[0])
    chosen = [_chosen(metric, names) for metric in metrics]
    primary = chosen[0] if chosen else _primary(a.runs[0], names)
    group_by = _group_field(a, group_by)
    by_group = _group_scores(primary, group_by)
    groups = _names(a, by_group) if group_by else []
    family = partial(_family, a, b, cluster, margin)
    worse, num_better = _changes(a, b, primary)
    return Differences(
        a=a,
        b=b,
        primary=primary,
        metrics=family(lambda item: item["scores"], chosen or names),
        group_by=group_by if len(groups) > 1 else None,
        groups=family(by_group, groups) if len(groups) > 1 else {},
        fields=family(fields, _names(a, fields)[:_MOST_FIELDS]) if fields else {},
        worse=worse[:most_worse],
        num_worse=len(worse),
        num_better=num_better,
        only=only,
        cluster=cluster,
    )


def _family(
    a: Side, b: Side, cluster: str, margin: float, scores: Columns, names: Sequence[str]
) -> dict[str, Comparison]:
    """Comparisons by some scores of items, adjusted for each other."""
    of_a, of_b = (with_scores(side, scores).runs for side in (a, b))
    found = [compare_rows(of_a, of_b, name, cluster=cluster, margin=margin) for name in names]
    return dict(zip(names, in_family(found), strict=True))


def _metrics(a: Run, b: Run) -> tuple[list[str], list[str]]:
    """(metrics that both have, that one has)."""
    of_a, of_b = a.items.scores, b.items.scores
    both = [name for name in of_a if name in of_b]
    if not both:
        raise UserError(
            f"compare: no metric in common: {a.folder} has {', '.join(of_a)}; {b.folder} has {', '.join(of_b)}; "
            "score both on one file with --data FILE"
        )
    return both, sorted({*of_a} ^ {*of_b})


def _chosen(metric: str, names: Sequence[str]) -> str:
    if metric not in names:
        raise UserError(
            f"compare: no item has a score {metric!r} on both sides.{did_you_mean(metric, names)}"
        )
    return metric


def _primary(run: Run, names: Sequence[str]) -> str:
    return run.primary if run.primary in names else names[0]


# -- groups and fields -----------------------------------------------------------------------------


def _group_field(side: Side, group_by: str | None) -> str | None:
    known = {name for item in side.items[0] for name in item.get("fields") or {}}
    if group_by and group_by not in known:
        raise UserError(
            f"compare: --group_by {group_by}: no item has that field.{did_you_mean(group_by, known)}"
        )
    data = (side.runs[0].record.get("config") or {}).get("data") or {}
    chosen = group_by or data.get("group_by") or _KIND
    return chosen if chosen in known else None


def _group_scores(metric: str, group_by: str | None) -> Columns:
    """An item's score under a name of its group's own, METRIC[group]."""

    def scores(item: Item) -> dict[str, float]:
        group = (item.get("fields") or {}).get(str(group_by), "(none)")
        score = item["scores"].get(metric)
        return {} if score is None else {f"{metric}[{group}]": score}

    return scores


def _names(side: Side, scores: Columns) -> list[str]:
    """The scores that there are, those of most items first."""
    counts = Counter(name for item in side.items[0] for name in scores(item))
    return [name for name, _ in counts.most_common()]


# -- items -----------------------------------------------------------------------------------------


def _changes(a: Side, b: Side, metric: str) -> tuple[list[Worse], int]:
    """(items that got worse, the worst first; how many got better)."""
    way = direction(metric) or 1
    of_a, of_b = (
        way * np.stack([run.items.scores[metric] for run in side.runs]) for side in (a, b)
    )  # (S, N)
    change = of_b.mean(0) - of_a.mean(0)
    with np.errstate(invalid="ignore"):
        worse = [int(n) for n in np.argsort(change, kind="stable") if change[n] < 0]
        better = int((change > 0).sum())
    best, worst = of_a.argmax(0), of_b.argmin(0)
    return [
        _worse(a.items[best[n]][n], b.items[worst[n]][n], way * float(change[n])) for n in worse
    ], better


def _worse(before: Item, after: Item, change: float) -> Worse:
    return Worse(
        id=str(before["id"]),
        images=tuple(before.get("image") or ()),
        prompt=str(before.get("prompt", "")),
        expected=str(before["expected"]),
        answer_a=str(before["generated"]),
        answer_b=str(after["generated"]),
        change=change,
    )
