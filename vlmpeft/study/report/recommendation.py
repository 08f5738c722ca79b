"""Which row of a study to take: the best on validation, with what the test says of it and of the rows near it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vlmpeft.runtime.errors import UserError
from vlmpeft.study.report.records import BASE_ROW, Study
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.statistics import (
    Comparison,
    Summary,
    compare_rows,
    in_family,
    interval,
    summary,
)
from vlmpeft.study.report.verdicts import direction


@dataclass(frozen=True)
class Recommendation:
    """The row to take on one task and base.

    Args:
        task: its name.
        base: its name.
        row: its name.
        title: of the row.
        metric: the primary one.
        split: that the scores are of.
        chosen_on: the split on which the row was the best.
        score: over the row's seeds.
        low: lower end of the 95 % interval of the score.
        high: upper end.
        zero_shot: the untouched base's score on the same items; None if it was not scored.
        others: row -> its comparison with the chosen one (other - chosen), adjusted over the rows.
        config: of the chosen row's first run.
    """

    task: str
    base: str
    row: str
    title: str
    metric: str
    split: str
    chosen_on: str
    score: Summary
    low: float
    high: float
    zero_shot: float | None
    others: Mapping[str, Comparison]
    config: Mapping[str, Any]

    @property
    def as_good(self) -> list[str]:
        """Rows that were not shown to differ from the chosen one."""
        return [row for row, found in self.others.items() if not found.is_significant]

    def lines(self) -> Iterator[str]:
        """What is recommended, in sentences."""
        runs = f"{self.score.n} seed{'s' if self.score.n > 1 else ''}"
        yield (
            f"take {self.title} ({self.row}) for {self.task} on {self.base}: {self.metric} {self.score.mean:.3f} "
            f"[{self.low:.3f}, {self.high:.3f}] on {self.split}, {runs}; it was the best of {len(self.others) + 1} rows on "
            f"{self.chosen_on}"
        )
        if self.zero_shot is not None:
            yield f"  the untouched base: {self.zero_shot:.3f}"
        for row, found in self.others.items():
            said = "" if found.is_significant else "; no difference shown"
            yield (
                f"  {row}: {found.means[1]:.3f}, {found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{said}"
            )
        if self.as_good:
            yield (
                f"  not shown to be worse: {', '.join(self.as_good)}; more data or seeds would tell, or take the cheapest"
            )

    def text(self, study: str) -> str:
        """The config of the row as YAML, with what is known of it on top."""
        said = "".join(f"# {line.strip()}\n" for line in self.lines())
        kept = {key: value for key, value in self.config.items() if key != "init_adapter"}
        return (
            f"# Recommended by study {study}\n{said}#   python -m vlmpeft fit --config THIS_FILE\n"
            + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
        )


def recommend(study: Study) -> list[Recommendation]:
    """The row to take, for each task and base that has finished rows.

    A row is chosen by its mean primary score on validation, and of equals the one with fewer trainable parameters. The test is looked
    at for the chosen row's score and for the comparisons, never for the choice.
    """
    pairs = [(task, base) for base in study.info.bases for task in study.info.tasks]
    return [found for task, base in pairs if (found := _recommend(study, task, base))]


def _recommend(study: Study, task: str, base: str) -> Recommendation | None:
    rows = {row.name: study.of(row.name, task, base) for row in study.info.rows}
    rows = {name: runs for name, runs in rows.items() if runs and name != BASE_ROW}
    if not rows:
        return None
    runs = next(iter(rows.values()))
    metric = runs[0].primary
    on = "val" if all("val" in run.record["metrics"]["tuned"] for run in runs) else runs[0].split
    best = max(rows, key=lambda name: _rank(rows[name], metric, on))
    chosen = rows[best]
    low, high = interval(chosen, metric, cluster=study.info.cluster)
    zero_shot = study.of(BASE_ROW, task, base)
    return Recommendation(
        task,
        base,
        best,
        study.info.row(best).title,
        metric,
        chosen[0].split,
        on,
        summary(run.score() for run in chosen),
        low,
        high,
        zero_shot[0].score() if zero_shot else None,
        _compared(study, chosen, {n: r for n, r in rows.items() if n != best}, metric),
        chosen[0].record["config"],
    )


def _rank(runs: Sequence[Run], metric: str, split: str) -> tuple[float, int]:
    way = direction(metric) or 1
    mean = summary(run.score(metric, split) for run in runs).mean
    return way * mean, -int(runs[0].record["trainable"])


def _compared(
    study: Study, chosen: Sequence[Run], others: Mapping[str, Sequence[Run]], metric: str
) -> dict[str, Comparison]:
    found = {}
    for name, runs in others.items():
        try:
            found[name] = compare_rows(
                chosen, runs, metric, cluster=study.info.cluster, margin=study.info.margin
            )
        except UserError:  # its items are others: it was scored on other data
            continue
    return dict(zip(found, in_family(list(found.values())), strict=True))
