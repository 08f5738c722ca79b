"""Comparisons of rows: against scipy's tests, published examples, and the truth of simulated studies."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from vlmpeft.runtime.errors import UserError
from vlmpeft.study.report.resampling import two_level_draws
from vlmpeft.study.report.standard_error import Spread, spread
from vlmpeft.study.report.statistics import (
    compare_rows,
    holm,
    in_family,
    interval,
    minimum_detectable,
    summary,
    tost,
)

from .made_runs import made_row, made_run

FEW = 800  # draws, where a simulation makes hundreds of comparisons


def _study(source, seeds=3, items=60, of_seeds=0.1, of_items=0.5, of_both=0.5, difference=0.0):
    """Two rows (S, N) of one study: items are shared, seeds and noise are not."""
    easy = source.normal(0, 1, items)
    rows = []
    for shift in (0.0, difference):
        own = source.normal(0, of_items, items) + source.normal(0, of_both, (seeds, items))
        rows.append(shift + easy + source.normal(0, of_seeds, (seeds, 1)) + own)
    return rows


def test_the_sd_is_that_of_a_sample_and_of_one_seed_there_is_none():
    scores = [0.9, 0.95, 0.92]
    assert summary(scores).sd == pytest.approx(np.std(scores, ddof=1))
    assert summary([*scores, float("nan")]) == summary(scores)
    assert np.isnan(summary([0.9]).sd)
    assert summary([]).n == 0


@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds, of_seeds):
    source, covered = np.random.default_rng(seeds), 0
    for _ in range(300):
        a, b = _study(source, seeds, of_seeds=of_seeds, difference=0.2)
        found = compare_rows(made_row(a), made_row(b), "exact_match", resamples=FEW)
        covered += found.low <= 0.2 <= found.high
    assert 0.91 <= covered / 300 <= 0.995


def test_percentiles_alone_cover_too_seldom_with_three_seeds():
    source, covered = np.random.default_rng(3), 0
    for _ in range(300):
        a, b = _study(source, of_seeds=1.0)
        low, high = np.quantile(two_level_draws([b - a], np.ones(60), FEW), (0.025, 0.975))
        covered += low <= 0 <= high
    assert covered / 300 < 0.85


def test_significance_is_seldom_where_nothing_differs_also_when_seeds_do():
    source, found = np.random.default_rng(9), []
    for _ in range(200):
        a, b = _study(source, of_seeds=0.3)
        found.append(compare_rows(made_row(a), made_row(b), "exact_match", resamples=FEW))
    assert np.mean([one.p < 0.05 for one in found]) > 0.2  # these runs do differ
    assert np.mean([one.is_significant for one in found]) <= 0.08  # their rows do not


def test_with_one_seed_the_interval_and_the_tests_are_those_of_paired_items():
    a, b = _study(np.random.default_rng(0), seeds=1, items=400, difference=0.15)
    found = compare_rows(made_row(a), made_row(b), "exact_match", margin=0.25)
    t = stats.ttest_rel(b[0], a[0])
    expected = t.confidence_interval()
    width = expected.high - expected.low
    assert found.difference == pytest.approx((b - a).mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.04 * width)
    assert found.p == pytest.approx(t.pvalue, abs=0.01)
    assert found.p_tost == pytest.approx(
        stats.ttest_1samp((b - a)[0], 0.25, alternative="less").pvalue
    )
    assert found.is_of_items_only
    assert found.num_seeds == (1, 1)


def test_a_row_against_itself_is_the_same():
    row = made_row(np.random.default_rng(0).integers(0, 2, (3, 400)))
    found = compare_rows(row, row, "exact_match")
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.is_equivalent
    assert not found.is_significant


def test_no_difference_among_few_items_is_no_equivalence():
    """With 20 pictures a row that is wrong on 1 % of them looks the same four times in five."""
    row = made_row(np.ones((3, 20)))
    found = compare_rows(row, row, "exact_match")
    assert found.p_tost == pytest.approx(stats.binom.pmf(0, 20, 0.01))
    assert not found.is_equivalent
    tests = [stats.binomtest(0, n).pvalue < 0.05 for n in range(1, 21)]
    power = stats.binom.pmf(np.arange(1, 21), 20, found.minimum_detectable) @ np.array(tests)
    assert power == pytest.approx(0.80)


def test_equivalence_is_shown_only_where_the_interval_is_inside_the_margin():
    source = np.random.default_rng(1)
    a = source.integers(0, 2, (5, 2000)).astype(float)
    b = np.where(source.random(a.shape) < 0.01, 1 - a, a)
    near = compare_rows(made_row(a), made_row(b), "exact_match")
    assert near.is_equivalent
    assert -0.01 < near.low < near.high < 0.01
    far = compare_rows(made_row(a), made_row(b), "exact_match", margin=1e-4)
    assert not far.is_equivalent
    few = compare_rows(made_row(a[:, :50]), made_row(b[:, :50]), "exact_match")
    assert not few.is_equivalent


def test_tost_is_the_larger_of_two_t_tests():
    data = np.random.default_rng(2).normal(0.004, 0.05, 100)
    expected = max(
        stats.ttest_1samp(data, 0.01, alternative="less").pvalue,
        stats.ttest_1samp(data, -0.01, alternative="greater").pvalue,
    )
    assert tost(data.mean(), spread([data[None]], np.ones(100)), 0.01, 100) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("freedom", [20, 399])
def test_the_minimum_detectable_difference_has_80_percent_power(freedom):
    shift = minimum_detectable(Spread(0.02, freedom), 400) / 0.02
    edge = stats.t.ppf(0.975, freedom)
    assert 1 - stats.nct.cdf(edge, freedom, shift) == pytest.approx(0.80, abs=0.01)


def test_the_minimum_detectable_difference_is_blooms_multiple_with_much_data():
    assert minimum_detectable(Spread(1.0, 1e6), 400) == pytest.approx(2.80, abs=0.005)


def test_holm_gives_the_published_adjustments():
    """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_stepping_down_by_hand_rejects():
    source = np.random.default_rng(3)
    for _ in range(50):
        p = source.beta(0.3, 3, 8)
        rejected = set()
        for rank, place in enumerate(np.argsort(p)):
            if p[place] > 0.05 / (8 - rank):
                break
            rejected.add(int(place))
        assert {n for n, value in enumerate(holm(p)) if value <= 0.05} == rejected


def test_a_family_makes_p_larger_and_significance_rarer():
    a, b = _study(np.random.default_rng(4), seeds=5, of_seeds=0, items=200, difference=0.1)
    one = compare_rows(made_row(a), made_row(b), "exact_match")
    assert one.is_significant
    first, *_ = in_family([one, *[replace(one, p=0.9)] * 99])
    assert first.p_holm == pytest.approx(min(1, 100 * one.p))
    assert not first.is_significant


def test_a_row_with_other_seeds_is_not_paired_and_the_difference_is_that_of_the_means():
    a, b = _study(np.random.default_rng(5), seeds=5, difference=0.3)
    found = compare_rows(made_row(a[:2]), made_row(b), "exact_match")
    assert not found.is_paired
    assert found.num_seeds == (2, 5)
    assert found.difference == pytest.approx(b.mean() - a[:2].mean())
    assert compare_rows(made_row(a), made_row(b)[::-1], "exact_match").is_paired


def test_pairing_seeds_helps_where_they_move_both_rows():
    shared = np.array([[-1.0], [0.0], [1.0]])
    a, b = (row + shared for row in _study(np.random.default_rng(6)))
    paired = compare_rows(made_row(a), made_row(b), "exact_match")
    others = [made_run(line, seed + 10) for seed, line in enumerate(b)]
    apart = compare_rows(made_row(a), others, "exact_match")
    assert apart.difference == pytest.approx(paired.difference)
    assert apart.high - apart.low > 3 * (paired.high - paired.low)


def test_a_base_without_a_seed_is_no_reason_for_a_flag():
    a, b = _study(np.random.default_rng(7))
    base = [made_run(a[0], None)]
    assert not compare_rows(base, made_row(b), "exact_match").is_of_items_only
    assert compare_rows(base, made_row(b)[:1], "exact_match").is_of_items_only


def test_items_of_one_picture_count_as_one():
    a, b = _study(np.random.default_rng(8), seeds=1, items=50, difference=0.2)
    once = compare_rows(made_row(a), made_row(b), "exact_match")
    a5, b5 = np.repeat(a, 5, axis=1), np.repeat(b, 5, axis=1)
    pictures = np.repeat(np.arange(50), 5)
    same = compare_rows(
        made_row(a5, clusters=pictures), made_row(b5, clusters=pictures), "exact_match"
    )
    assert (same.num_items, same.num_clusters) == (250, 50)
    assert (same.low, same.high) == pytest.approx((once.low, once.high), abs=0.03)
    assert same.p == pytest.approx(once.p, abs=0.01)
    items = compare_rows(made_row(a5), made_row(b5), "exact_match")
    assert items.high - items.low < 0.6 * (same.high - same.low)


def test_items_without_a_score_are_left_out():
    a, b = (row.copy() for row in _study(np.random.default_rng(10)))
    a[:, :20] = b[:, :20] = np.nan
    found = compare_rows(made_row(a), made_row(b), "exact_match")
    kept = compare_rows(made_row(a[:, 20:]), made_row(b[:, 20:]), "exact_match")
    assert found.num_items == kept.num_items == 40
    assert found.difference == pytest.approx(kept.difference)


def test_an_item_that_one_run_has_no_score_for_is_left_out_of_all():
    a, b = (row.copy() for row in _study(np.random.default_rng(10)))
    b[1, :20] = np.nan
    found = compare_rows(made_row(a), made_row(b), "exact_match")
    assert found.num_items == 40
    assert found.difference == pytest.approx((b - a)[:, 20:].mean())


def test_the_interval_of_a_row_is_wilsons_about_and_stays_among_scores():
    scores = np.zeros((1, 400))
    scores[:, :380] = 1
    low, high = interval(made_row(scores), "exact_match")
    wilson = stats.binomtest(380, 400).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=0.006)
    scores[:, 1:] = 1
    scores[:, 0] = 0
    assert interval(made_row(scores), "exact_match")[1] <= 1


def test_two_seeds_that_disagree_leave_every_possible_difference_open():
    a = np.zeros((2, 60))
    b = np.stack([np.ones(60), np.zeros(60)])
    a[:, 0] = 1
    found = compare_rows(made_row(a), made_row(b), "exact_match")
    assert (found.low, found.high) == (-1, 1)


def test_a_score_of_the_whole_corpus_is_flagged():
    a, b = _study(np.random.default_rng(11))
    rows = made_row(a), made_row(b)
    assert not compare_rows(*rows, "exact_match").is_corpus_level
    rows[1][0].record["metrics"]["tuned"]["test"]["exact_match"] = 0.123
    assert compare_rows(*rows, "exact_match").is_corpus_level


def test_other_items_are_refused_with_their_number():
    short = made_run(np.ones(50), 1)
    with pytest.raises(UserError, match=r"made-seed0.*made-seed1.*10 \(item-00050, .*only in"):
        compare_rows([made_run(np.ones(60))], [short], "exact_match")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "exact_mach"}, "Did you mean exact_match"),
        ({"metric": "exact_match", "cluster": "scene"}, "'scene' is no field.*image"),
    ],
)
def test_what_is_not_there_is_refused_by_name(options, message):
    row = made_row(np.ones((2, 20)))
    with pytest.raises(UserError, match=message):
        compare_rows(row, row, **options)
