"""The standard error against scipy's where one level is alone, and against the truth of a simulation where both are."""

import numpy as np
import pytest
from scipy import stats

from vlmpeft.study.report.standard_error import mean, spread


def _crossed(source, seeds, clusters, of_seeds, of_clusters, of_both):
    return (
        source.normal(0, of_seeds, (seeds, 1))
        + source.normal(0, of_clusters, (1, clusters))
        + source.normal(0, of_both, (seeds, clusters))
    )


def test_one_seed_has_the_standard_error_of_its_items():
    data = np.random.default_rng(0).normal(size=(1, 50))
    found = spread([data], np.ones(50))
    assert found.error == pytest.approx(stats.sem(data[0]))
    assert found.freedom == pytest.approx(49)


def test_items_without_noise_leave_the_standard_error_of_seeds():
    by_seed = np.array([0.5, 0.9, 0.6])
    found = spread([np.repeat(by_seed[:, None], 50, axis=1)], np.ones(50))
    assert found.error == pytest.approx(stats.sem(by_seed))
    assert found.freedom == pytest.approx(2)


def test_two_rows_of_seeds_have_welchs_standard_error_and_freedom():
    a, b = np.array([0.5, 0.9, 0.6]), np.array([0.1, 0.3, 0.2, 0.7])
    arms = [np.repeat(row[:, None], 20, axis=1) for row in (a, b)]
    welch = stats.ttest_ind(b, a, equal_var=False)
    found = spread([arms[1], -arms[0]], np.ones(20))
    assert found.freedom == pytest.approx(welch.df)
    assert mean([arms[1], -arms[0]], np.ones(20)) / found.error == pytest.approx(welch.statistic)


@pytest.mark.parametrize("effects", [(0.3, 1.0, 1.0), (0.0, 1.0, 2.0), (1.0, 0.0, 1.0)], ids=str)
def test_the_variance_of_crossed_effects_is_not_biased_by_more_than_its_floor(effects):
    source = np.random.default_rng(1)
    seeds, clusters = 3, 40
    truth = effects[0] ** 2 / seeds + effects[1] ** 2 / clusters
    truth += effects[2] ** 2 / seeds / clusters
    found = [
        spread([_crossed(source, seeds, clusters, *effects)], np.ones(clusters)).error ** 2
        for _ in range(2000)
    ]
    assert 0.95 * truth < np.mean(found) < 1.25 * truth


def test_items_that_repeat_each_other_count_once():
    data = np.random.default_rng(2).normal(size=(3, 40))
    once = spread([data], np.ones(40))
    as_clusters = spread([data * 5], np.full(40, 5.0))
    as_items = spread([np.repeat(data, 5, axis=1)], np.ones(200))
    assert as_clusters.error == pytest.approx(once.error)
    assert as_items.error < 0.6 * once.error


def test_uneven_clusters_have_the_standard_error_of_a_ratio():
    """The linearised error of sum(y) / sum(n), Cochran 1977, equation 6.13 without the finite correction."""
    source = np.random.default_rng(3)
    sizes = source.integers(1, 8, 60).astype(float)
    sums = source.normal(1, 1, 60) * sizes
    ratio = sums.sum() / sizes.sum()
    expected = np.sqrt(((sums - ratio * sizes) ** 2).sum() / 59 * 60) / sizes.sum()
    assert spread([sums[None]], sizes).error == pytest.approx(expected)


def test_no_differences_have_no_error_and_one_cluster_none_that_is_known():
    assert spread([np.full((3, 40), 0.1)], np.ones(40)).error == 0
    assert np.isnan(spread([np.ones((3, 1))], np.ones(1)).error)
