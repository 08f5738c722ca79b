"""Means, intervals and tests over the runs of two rows of a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import betaincinv, stdtr, stdtrit

from vlmpeft.study.report.pairing import is_corpus_level, tabulate
from vlmpeft.study.report.resampling import PERMUTATIONS, RESAMPLES, sign_flip_p, two_level_draws
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.standard_error import Spread, mean, spread

LEVEL, POWER = 0.05, 0.80
_FEWEST = 6  # clusters that differ, all the same way, for p = 2 / 2^6 < 0.05


@dataclass(frozen=True)
class Summary:
    """A score over seeds: sd is the sample's (n - 1), nan of fewer than two."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Row b against row a: the difference is b - a.

    Args:
        metric: name of the score.
        means: of a and of b, over items and seeds.
        difference: b - a.
        low: lower end of the 95 % interval of the difference over seeds and clusters, within what scores of items allow.
        high: upper end.
        p: two-sided permutation p of these runs: that each cluster's answers could as well have been the other row's. It says
            nothing about other seeds; the interval does.
        p_tost: of the two one-sided t tests that the difference is outside of the margin.
        margin: of the equivalence.
        minimum_detectable: true difference that would be found with 80 % power at 5 %, two-sided.
        num_seeds: runs of a and of b.
        num_items: items that both have a score for.
        num_clusters: clusters of these.
        is_paired: whether seeds are paired.
        is_of_items_only: a trained row has one seed: the interval is over items, and says nothing about other seeds.
        is_corpus_level: the records' scores are not the means of the items' scores, which these statistics are of.
        p_holm: p, adjusted for a family of comparisons; None if it was not.
    """

    metric: str
    means: tuple[float, float]
    difference: float
    low: float
    high: float
    p: float
    p_tost: float
    margin: float
    minimum_detectable: float
    num_seeds: tuple[int, int]
    num_items: int
    num_clusters: int
    is_paired: bool
    is_of_items_only: bool
    is_corpus_level: bool
    p_holm: float | None = None

    @property
    def is_significant(self) -> bool:
        """Whether p (adjusted if it was) is below 5 % and the interval leaves out 0: these runs differ, and other seeds would."""
        p = self.p if self.p_holm is None else self.p_holm
        return p < LEVEL and (self.low > 0 or self.high < 0)

    @property
    def is_equivalent(self) -> bool:
        """Whether the difference is shown to be within the margin."""
        return self.p_tost < LEVEL


def summary(values: Iterable[float]) -> Summary:
    """Mean, sd and number of scores of runs; nan is left out.

    >>> summary([1.0, 2.0, 3.0])
    Summary(mean=2.0, sd=1.0, n=3)
    """
    kept = np.array([value for value in values if not np.isnan(value)], float)
    n = len(kept)
    sd = float(kept.std(ddof=1)) if n > 1 else float("nan")
    return Summary(float(kept.mean()) if n else float("nan"), sd, n)


def interval(
    runs: Sequence[Run],
    metric: str,
    *,
    cluster: str = "image",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of a row's mean over seeds and clusters of items, within the range of the items' scores.

    Args:
        runs: of one row, one for each seed.
        metric: name of a score of items.
        cluster: items of one value are not independent: image, or a field.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        UserError: the runs have different items, or no such score.
    """
    table = tabulate([runs], metric, cluster)
    least, most = _range(runs, metric)
    low, high = _interval(table.sums, table.sizes, spread(table.sums, table.sizes), resamples, seed)
    return max(low, least), min(high, most)


def compare_rows(
    a: Sequence[Run],
    b: Sequence[Run],
    metric: str,
    *,
    cluster: str = "image",
    margin: float = 0.01,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Compare two rows item by item: b - a.

    Runs are paired by seed if both rows have the same seeds. Otherwise each row's seeds are drawn on their own, and every run
    counts, so that the difference is always that of the rows' means.

    Args:
        a: runs of the reference, one for each seed.
        b: runs of the other row.
        metric: name of a score of items.
        cluster: items of one value are not independent: image, or a field.
        margin: difference below which rows count as equivalent.
        resamples: draws of the bootstrap.
        permutations: patterns of signs of the permutation test.
        seed: of both.

    Raises:
        UserError: the runs have different items, or no such score.
    """
    a, b = _by_seed(a), _by_seed(b)
    table = tabulate([a, b], metric, cluster)
    of_a, of_b = table.sums
    is_paired = _are_paired(a, b)
    arms = [of_b - of_a] if is_paired else [of_b, -of_a]
    difference, error = mean(arms, table.sizes), spread(arms, table.sizes)
    low, high = _interval(arms, table.sizes, error, resamples, seed)
    (least_a, most_a), (least_b, most_b) = _range(a, metric), _range(b, metric)
    return Comparison(
        metric=metric,
        means=(mean([of_a], table.sizes), mean([of_b], table.sizes)),
        difference=difference,
        low=max(low, least_b - most_a),
        high=min(high, most_b - least_a),
        p=sign_flip_p(of_b.mean(0) - of_a.mean(0), permutations, seed),
        p_tost=tost(difference, error, margin, len(table.sizes)),
        margin=margin,
        minimum_detectable=minimum_detectable(error, len(table.sizes)),
        num_seeds=(len(a), len(b)),
        num_items=int(table.sizes.sum()),
        num_clusters=len(table.sizes),
        is_paired=is_paired,
        is_of_items_only=any(len(row) == 1 and row[0].seed is not None for row in (a, b)),
        is_corpus_level=any(is_corpus_level(run, metric) for run in (*a, *b)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family, adjusted so that the chance of any false one stays below the level (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def in_family(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons, each with the p that Holm adjusts for all of them."""
    adjusted = holm([one.p for one in comparisons])
    return [replace(one, p_holm=p) for one, p in zip(comparisons, adjusted, strict=True)]


def tost(difference: float, error: Spread, margin: float, clusters: int) -> float:
    """The p-value of two one-sided t tests that the difference is outside of the margin (Schuirmann 1987).

    Where every cluster has the same difference there is no error to test with. Then p is the chance to see that if a share
    `margin` of clusters were one point off, (1 - margin)^C, which is right for scores of 0 to 1.
    """
    if error.error == 0:
        return 1.0 if abs(difference) >= margin else (1 - margin) ** clusters
    distance = (margin - abs(difference)) / error.error
    return float(1 - stdtr(error.freedom, distance))


def minimum_detectable(error: Spread, clusters: int) -> float:
    """True difference that a two-sided test at 5 % finds with 80 % power: (t_.975 + t_.80) x standard error.

    With many seeds that is 2.80 standard errors (Bloom 1995, doi:10.1177/0193841X9501900504). Where every cluster has the same
    difference, it is the share of clusters with another outcome that gives the sign test its six with 80 %, for p < 0.05; that
    is right for scores of 0 or 1.
    """
    if error.error == 0:
        return (
            float(betaincinv(_FEWEST, clusters - _FEWEST + 1, POWER))
            if clusters >= _FEWEST
            else 1.0
        )
    quantiles = stdtrit(error.freedom, 1 - LEVEL / 2) + stdtrit(error.freedom, POWER)
    return float(quantiles * error.error)


def _interval(
    arms: Sequence[np.ndarray], sizes: np.ndarray, error: Spread, resamples: int, seed: int
) -> tuple[float, float]:
    """As skewed as the percentiles of the two-level bootstrap, and as wide as the t interval.

    Of three seeds percentiles alone reach from the worst to the best of them, and cover three times in four. So the distances
    of the percentiles from the mean are stretched, both by one factor, until they are 2 t standard errors apart; with many seeds
    and clusters that changes nothing.
    """
    middle = mean(arms, sizes)
    if not error.error > 0:
        return (middle, middle) if error.error == 0 else (float("nan"), float("nan"))
    draws = two_level_draws(arms, sizes, resamples, seed)
    ends = np.quantile(draws, (LEVEL / 2, 1 - LEVEL / 2))
    width = 2 * stdtrit(error.freedom, 1 - LEVEL / 2) * error.error
    low, high = middle + width / (ends[1] - ends[0]) * (ends - middle)
    return float(low), float(high)


def _range(runs: Sequence[Run], metric: str) -> tuple[float, float]:
    """The lowest and the highest score of an item."""
    scores = [run.items.scores[metric] for run in runs]
    return float(np.nanmin(scores)), float(np.nanmax(scores))


def _by_seed(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: -1 if run.seed is None else run.seed)


def _are_paired(a: Sequence[Run], b: Sequence[Run]) -> bool:
    seeds = [run.seed for run in a]
    return len({*seeds}) == len(seeds) and seeds == [run.seed for run in b]
