"""Draws and sign flips against scipy's bootstrap and permutation test, closed forms and plain loops."""

import numpy as np
import pytest
from scipy import stats

from vlmpeft.study.report import resampling
from vlmpeft.study.report.resampling import seed_shares, sign_flip_p, two_level_draws

ONES = np.ones(60)


def _items(seeds=1, clusters=60, seed=0):
    return np.random.default_rng(seed).gamma(2.0, size=(seeds, clusters))


def test_draws_of_one_seed_are_scipys_bootstrap_over_items():
    data = _items()
    ends = np.quantile(two_level_draws([data], ONES), (0.025, 0.975))
    found = stats.bootstrap(
        (data[0],), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = found.high - found.low
    np.testing.assert_allclose(ends, (found.low, found.high), atol=0.04 * width)


def test_draws_of_uneven_clusters_are_means_over_items():
    sizes = np.random.default_rng(3).integers(1, 6, 60).astype(float)
    sums = _items() * sizes
    source, loop = np.random.default_rng(4), []
    for _ in range(10_000):
        drawn = source.integers(0, 60, 60)
        loop.append(sums[0, drawn].sum() / sizes[drawn].sum())
    draws = two_level_draws([sums], sizes)
    assert draws.std() == pytest.approx(np.std(loop), rel=0.03)
    assert draws.mean() == pytest.approx(np.mean(loop), rel=0.005)


def test_the_variance_of_draws_is_the_closed_form_of_crossed_levels():
    data = _items(seeds=4) + np.arange(4)[:, None]
    by_seed, by_item = data.mean(1) - data.mean(), data.mean(0) - data.mean()
    rest = data - data.mean() - by_seed[:, None] - by_item
    expected = (by_seed**2).mean() / 4 + (by_item**2).mean() / 60 + (rest**2).mean() / 240
    assert two_level_draws([data], ONES).var() == pytest.approx(expected, rel=0.04)


def test_seeds_that_vary_widen_the_draws():
    data = np.repeat(_items(), 3, axis=0)
    alike = two_level_draws([data], ONES)
    apart = two_level_draws([data + np.array([[-1.0], [0.0], [1.0]])], ONES)
    assert alike.std() == pytest.approx(two_level_draws([data[:1]], ONES).std(), rel=1e-9)
    assert apart.std() > 2 * alike.std()


def test_arms_are_drawn_on_their_own():
    a, b = (_items(4, seed=seed) + 2 * np.arange(4)[:, None] for seed in (1, 7))
    both = two_level_draws([b, -a], ONES)
    by_seed = np.var(a.mean(1)) / 4 + np.var(b.mean(1)) / 4
    assert both.var() == pytest.approx(by_seed, rel=0.15)  # pictures add little here
    assert both.mean() == pytest.approx(b.mean() - a.mean(), abs=0.05)


def test_draws_in_blocks_are_those_of_the_same_distribution(monkeypatch):
    whole = two_level_draws([_items(3)], ONES, 4000)
    resampling._counts.cache_clear()
    monkeypatch.setattr(resampling, "_BLOCK_BYTES", 8 * 60 * 300)
    parts = two_level_draws([_items(3)], ONES, 4000)
    assert len(parts) == len(whole) == 4000
    assert parts.std() == pytest.approx(whole.std(), rel=0.06)
    resampling._counts.cache_clear()


def test_shares_of_seeds_sum_to_one():
    shares = seed_shares(5, 200, seed=0, arm=0)
    np.testing.assert_allclose(shares.sum(0), 1)
    assert (shares > 0).any(1).all()
    assert not np.array_equal(shares, seed_shares(5, 200, seed=0, arm=1))


@pytest.mark.parametrize("seed", range(5))
def test_few_differences_have_scipys_exact_p(seed):
    differences = np.random.default_rng(seed).integers(-3, 5, 9).astype(float)
    expected = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(differences) == pytest.approx(expected)


def test_many_differences_have_scipys_p_within_its_error():
    differences = np.random.default_rng(5).normal(0, 1, 80)
    differences += 0.2 - differences.mean()
    expected = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=10_000,
        rng=np.random.default_rng(6),
    ).pvalue  # fmt: skip
    assert 0.02 < expected < 0.5
    assert sign_flip_p(differences) == pytest.approx(expected, abs=0.02)


def test_binary_answers_have_mcnemars_exact_p():
    better, worse = 9, 2
    differences = np.array([1.0] * better + [-1.0] * worse + [0.0] * 300)
    assert sign_flip_p(differences) == pytest.approx(stats.binomtest(worse, 11).pvalue)


def test_p_is_uniform_where_nothing_differs():
    source = np.random.default_rng(8)
    found = [sign_flip_p(source.normal(size=40), permutations=999) for _ in range(400)]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_p_of_no_difference_is_one():
    assert sign_flip_p(np.zeros(50)) == 1.0


def test_the_same_seed_gives_the_same_draws():
    first = two_level_draws([_items(3)], ONES, seed=1), sign_flip_p(_items()[0] - 2, seed=1)
    resampling._counts.cache_clear()
    resampling._signs.cache_clear()
    again = two_level_draws([_items(3)], ONES, seed=1), sign_flip_p(_items()[0] - 2, seed=1)
    assert np.array_equal(first[0], again[0])
    assert first[1] == again[1]
    assert not np.array_equal(first[0], two_level_draws([_items(3)], ONES, seed=2))
