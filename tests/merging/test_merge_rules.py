"""Every merge rule against its definition, by hand or by PEFT's own function, and the laws of all of them."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from vlmpeft.merging import (
    average,
    breadcrumbs,
    dare_linear,
    dare_ties,
    della,
    linear,
    magnitude,
    slerp,
    task_arithmetic,
    ties,
)
from vlmpeft.merging.engine import merge
from vlmpeft.merging.kth_largest import kth_largest
from vlmpeft.merging.recipe import Recipe
from vlmpeft.merging.rule_table import RULES, RuleName
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.low_rank import LowRank, best_of_rank, dense, weighted_sum

from ..conftest import ROOT

TASKS = torch.tensor(
    [
        [0.90, -0.10, 0.50, 0.05, -3.00, 0.20, -0.80, 1.50, -0.01, 0.30],
        [-2.00, 0.40, 0.60, 0.11, 1.10, -0.70, 0.25, -1.20, 0.03, 0.02],
        [0.55, 0.35, -0.75, 2.10, 1.00, 0.15, -0.45, -0.60, 0.08, -0.95],
    ],
    dtype=torch.float64,
)
MEAN = [-0.183333, 0.216667, 0.116667, 0.753333, -0.3, -0.116667, -0.333333, -0.1, 0.033333, -0.21]
ARITHMETIC = [-0.22, 0.26, 0.14, 0.904, -0.36, -0.14, -0.4, -0.12, 0.04, -0.252]
TRIMMED = [-2, 0, 0, 2.1, -3, 0, 0, 1.5, 0, 0]
ELECTED = [-2, 0.375, 0.55, 0.753333, -3, -0.7, -0.625, -0.9, 0.055, -0.95]
GOLDEN = {
    "mean": (average(TASKS), MEAN),
    "linear": (linear(TASKS), MEAN),
    "task arithmetic": (task_arithmetic(TASKS, lam=0.4), ARITHMETIC),
    "ties 20 %": (ties(TASKS, density=0.2), TRIMMED),
    "ties 100 %": (ties(TASKS, density=1.0), ELECTED),
    # two largest of each, summed
    "magnitude 20 %": (
        magnitude(TASKS, density=0.2),
        [-2, 0, 0, 2.1, -3 + 1.0, 0, 0, 1.5 - 1.2, 0, 0],
    ),
    # without each one's largest, the three that follow
    "breadcrumbs": (
        breadcrumbs(TASKS, density=0.3, gamma=0.1),
        [0.9, 0, -0.75, 0, 1.1 + 1.0, -0.7, -0.8, 1.5 - 1.2, 0, -0.95],
    ),
}


@pytest.mark.parametrize(("merged", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_rules_give_the_golden_vectors(merged, expected):
    torch.testing.assert_close(merged, torch.tensor(expected).double(), rtol=0, atol=1e-6)


# The arithmetic of TIES (arXiv:2306.01708, section 4.2: trim, elect, disjoint mean) with a weight for each task. The two
# largest of each stay: [4, 0, 2, 0], [-2, 3, 0, 0], [0, -4, 0, 6]. A weight multiplies what its task has left, then
# signs are elected. The mean of those that agree is divided by their weights without sign: a weight of -2 is the negated
# task with a weight of 2, and the merged value has the elected sign and lies between the values it is the mean of.
# mergekit divides by the sum of signed weights, PEFT by how many agree, and PEFT elects before it weighs.
UNEVEN = [[4.0, -1.0, 2.0, 0.5], [-2.0, 3.0, 1.0, 0.25], [1.0, -4.0, 0.0, 6.0]]
WEIGHTED = {
    # 4 - 6 < 0: -6 / 3; -2 + 9 > 0: 9 / 3; 2 / 1; 3 / 0.5
    "unequal": ((1.0, 3.0, 0.5), "mass", [-6 / 3, 9 / 3, 2 / 1, 3 / 0.5]),
    # 4 + 4: 8 / 3; -6 - 4: -10 / 3; 2 / 1; 6 / 1
    "negative": ((1.0, -2.0, 1.0), "mass", [8 / 3, -10 / 3, 2 / 1, 6 / 1]),
    # those that agree weigh 2 - 2 = 0 with signs: 8 + 4 over 4; -6 - 8 over 4; 4 / 2; 12 / 2
    "negative, of sum zero": ((2.0, -2.0, 2.0), "mass", [12 / 4, -14 / 4, 4 / 2, 12 / 2]),
    "all negative": ((-1.0, -3.0, -0.5), "mass", [6 / 3, -9 / 3, -2 / 1, -3 / 0.5]),
    # 4 - 4 and 6 - 6 are ties
    "ties": ((1.0, 2.0, 1.5), "mass", [0, 0, 2 / 1, 9 / 1.5]),
    # one vote a task, of the sign that its weight gives it: + -, tie; + -, tie; 2; 6
    "frequency, unequal": ((1.0, 3.0, 0.5), "frequency", [0, 0, 2 / 1, 3 / 0.5]),
    "frequency, negative": ((1.0, -2.0, 1.0), "frequency", [8 / 3, -10 / 3, 2 / 1, 6 / 1]),
}


@pytest.mark.parametrize(("weights", "majority", "expected"), WEIGHTED.values(), ids=WEIGHTED)
def test_ties_weighs_before_it_elects_and_divides_by_weights_without_sign(
    weights, majority, expected
):
    tasks, wanted = torch.tensor(UNEVEN), torch.tensor(expected)
    torch.testing.assert_close(ties(tasks, weights, 0.5, majority=majority), wanted)
    torch.testing.assert_close(ties(tasks, weights, 0.5, 0.5, majority), wanted / 2)
    recipe = Recipe("ties", weights=weights, density=0.5, majority=majority)
    parts = [{"v.a": row.view(2, 2)} for row in tasks]
    ((_, merged),) = merge(parts, recipe, lambda _: "vision")
    torch.testing.assert_close(merged, wanted.view(2, 2))


def _ties_in_numpy(tasks, weights, keep):
    """Value by value, as section 4.2 of arXiv:2306.01708 says it."""
    merged = np.zeros(tasks.shape[1])
    trimmed = np.zeros_like(tasks)
    for row, own in zip(trimmed, tasks, strict=True):
        largest = np.argsort(-np.abs(own))[:keep]
        row[largest] = own[largest]
    for place, column in enumerate(trimmed.T):
        contributions = [w * value for w, value in zip(weights, column, strict=True)]
        positive = sum(contributions) > 0
        agree = [i for i, c in enumerate(contributions) if c != 0 and (c > 0) == positive]
        if agree:
            mass = sum(abs(weights[i]) for i in agree)
            merged[place] = sum(contributions[i] for i in agree) / mass
    return merged


@pytest.mark.parametrize("seed", range(4))
def test_ties_of_random_tasks_and_weights_is_the_paper_s_arithmetic_in_numpy(seed):
    rng = np.random.default_rng(seed)
    tasks, weights = rng.normal(size=(4, 60)), rng.normal(size=4)
    expected = torch.from_numpy(_ties_in_numpy(tasks, weights, keep=30))
    torch.testing.assert_close(ties(torch.from_numpy(tasks), weights.tolist(), 0.5), expected)


@pytest.mark.parametrize(
    ("size", "density", "kept"),
    [
        (7, 0.5, 4),  # 3.5: int says 3
        (10, 0.25, 2),  # 2.5: to the even number
        (10, 0.35, 4),  # 3.5
        (100, 0.29, 29),  # 28.999...96 in floating point: int says 28
        (5, 0.05, 1),  # at least one
        (3, 1.0, 3),
    ],
)
def test_a_trim_keeps_density_times_size_rounded(size, density, kept):
    task = torch.arange(1.0, size + 1)[None] * (-1) ** torch.arange(size)
    wanted = torch.where(torch.arange(size) >= size - kept, task[0], 0)
    assert torch.equal(magnitude(task, density=density), wanted)
    assert torch.equal(ties(task, density=density), wanted)
    assert torch.equal(breadcrumbs(task, density=density, gamma=0), wanted)


# 3 + 4 values of vision and 3 of language; the magnitudes that stay
KEPT = {
    ("tensor", 0.5): {"v.a": [9, 5], "v.b": [8, 7], "l.c": [6, 2]},  # 1.5 -> 2, 2, 1.5 -> 2
    ("component", 0.5): {"v.a": [9, 5], "v.b": [8, 7], "l.c": [6, 2]},  # 3.5 -> 4, 1.5 -> 2
    ("model", 0.35): {"v.a": [9], "v.b": [8, 7], "l.c": [6]},  # 3.5 -> 4
    ("component", 0.35): {"v.a": [9], "v.b": [8], "l.c": [6]},  # 2.45 -> 2, 1.05 -> 1
    ("tensor", 0.35): {"v.a": [9], "v.b": [8], "l.c": [6]},  # 1.05 -> 1, 1.4 -> 1, 1.05 -> 1
    ("model", 0.25): {"v.a": [9], "v.b": [8], "l.c": []},  # 2.5 -> 2
    ("component", 0.9): {
        "v.a": [9, 5, 3],
        "v.b": [8, 7, 4],
        "l.c": [6, 2, 1],
    },  # 6.3 -> 6, 2.7 -> 3
}


@pytest.mark.parametrize(("scope", "density"), KEPT)
@pytest.mark.parametrize("method", ["ties", "magnitude", "breadcrumbs"])
def test_the_size_that_is_rounded_is_the_scope_s(method, scope, density):
    part = {
        "v.a": torch.tensor([5.0, -9.0, 3.0]),
        "v.b": torch.tensor([[-7.0, 0.5], [8.0, -4.0]]),
        "l.c": torch.tensor([1.0, -6.0, 2.0]),
    }
    extra = {"gamma": 0.0} if method == "breadcrumbs" else {}
    recipe = Recipe(method, scope=scope, density=density, **extra)
    for name, merged in merge([part], recipe, lambda n: n[0]):
        kept = [value for value in merged.flatten().tolist() if value]
        assert sorted(map(abs, kept), reverse=True) == KEPT[scope, density][name]
        assert all(value in part[name] for value in kept)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_rules_agree_with_peft_where_peft_works_on_a_vector(density):
    """PEFT keeps int(density D) values, the same number here."""
    from peft.utils import merge_utils

    tasks = list(TASKS.float())
    weights = torch.tensor([1.0, 0.5, 2.0])
    ours = {
        "ties": ties(TASKS.float(), weights.tolist(), density),
        "magnitude": magnitude(TASKS.float(), weights.tolist(), density),
    }
    theirs = {
        "magnitude": merge_utils.magnitude_prune(tasks, weights, density),
        "ties": merge_utils.ties(tasks, torch.ones(3), density, "total"),
    }
    torch.testing.assert_close(ours["magnitude"], theirs["magnitude"])
    torch.testing.assert_close(ties(TASKS.float(), density=density), theirs["ties"])


def test_slerp_keeps_the_angle_and_turns_by_it():
    first, second = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    tasks = torch.stack([first, second])
    half = math.sqrt(0.5) * 2
    torch.testing.assert_close(slerp(tasks), torch.tensor([half, half]))
    turned = torch.tensor([math.cos(math.pi / 8) * 2, math.sin(math.pi / 8) * 2])
    torch.testing.assert_close(slerp(tasks, weights=(3, 1)), turned)
    torch.testing.assert_close(slerp(torch.stack([first, first])), first)
    torch.testing.assert_close(slerp(torch.stack([first, -first]), weights=(3, 1)), first / 2)
    with pytest.raises(UserError, match="slerp is between two adapters, and there are 3"):
        slerp(TASKS)


def test_dare_keeps_the_mean_and_has_the_variance_of_its_definition():
    """Drop with p, rescale by 1 / (1 - p): mean x, variance x^2 p / (1 - p)."""
    generator = torch.Generator().manual_seed(0)
    x, density = torch.full((1, 200_000), 3.0), 0.25
    merged = dare_linear(x, density=density, generator=generator)
    assert merged.mean().item() == pytest.approx(3.0, rel=0.02)
    assert merged.var().item() == pytest.approx(9 * 0.75 / 0.25, rel=0.02)
    assert set(merged.unique().tolist()) == {0.0, 12.0}


def test_della_keeps_the_mean_and_drops_small_values_more_often():
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(1, 2, 100_000)[None]
    merged = della(x, density=0.5, epsilon=0.4, generator=generator)
    kept = merged != 0
    assert kept[:10_000].float().mean().item() == pytest.approx(0.32, abs=0.02)
    assert kept[-10_000:].float().mean().item() == pytest.approx(0.68, abs=0.02)
    assert merged[:10_000].mean().item() == pytest.approx(x[0, :10_000].mean().item(), rel=0.03)


@pytest.mark.parametrize(
    ("density", "lowest", "highest"),
    [
        (0.9, 0.81, 0.99),  # the spread is 0.2, from 0.8 to 1; a tenth of it is 0.02
        (0.1, 0.0109, 0.1891),  # 0.198, from 0.001 to 0.199
    ],
)
def test_a_spread_that_is_too_wide_is_narrowed_as_little_as_need_be(density, lowest, highest):
    """Of epsilon 0.4; the means over the first and the last tenth of the ranks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(1, 2, 100_000)[None]
    kept = della(x, density=density, epsilon=0.4, generator=generator) != 0
    assert kept[:10_000].float().mean().item() == pytest.approx(lowest, abs=0.01)
    assert kept[-10_000:].float().mean().item() == pytest.approx(highest, abs=0.01)


def test_dare_ties_elects_among_what_was_not_dropped():
    generator = torch.Generator().manual_seed(0)
    tasks = torch.tensor([[5.0], [-1.0]]).expand(2, 10_000)
    merged = dare_ties(tasks, density=0.5, generator=generator)
    found = {v: (merged == v).float().mean().item() for v in (10.0, -2.0, 0.0)}
    assert found[10.0] == pytest.approx(0.5, abs=0.02)
    assert found[-2.0] == pytest.approx(0.25, abs=0.02)
    assert sum(found.values()) == pytest.approx(1)


def _knobs(name):
    """Such that nothing is dropped."""
    return {"density": 1.0} if "density" in RULES[name].knobs else {}


@pytest.mark.parametrize("name", [name for name in RULES if name != "slerp"])
def test_one_task_vector_is_itself(name):
    torch.testing.assert_close(RULES[name].merge(TASKS[:1], **_knobs(name)), TASKS[0])


@pytest.mark.parametrize("name", [name for name in RULES if name != "slerp"])
def test_the_order_of_adapters_does_not_matter_and_the_sign_is_odd(name):
    rule, knobs = RULES[name].merge, _knobs(name) if RULES[name].is_random else {}
    merged = rule(TASKS, **knobs)
    torch.testing.assert_close(rule(TASKS[[2, 0, 1]], **knobs), merged)
    torch.testing.assert_close(rule(-TASKS, **knobs), -merged)


def test_a_tie_of_signs_is_zero_whatever_the_order():
    for majority in ("mass", "frequency"):
        tie = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
        assert ties(tie, density=1.0, majority=majority).tolist() == [0.0, 2.0]
    uneven = torch.tensor([[3.0], [-1.0], [-1.0]])
    assert ties(uneven, density=1.0, majority="mass").tolist() == [3.0]
    assert ties(uneven, density=1.0, majority="frequency").tolist() == [-1.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ties(TASKS, density=0), "density=0"),
        (lambda: ties(TASKS, density=1.1), "density=1.1"),
        (lambda: dare_linear(TASKS, density=-0.5), "density=-0.5"),
        (lambda: della(TASKS, epsilon=2), "epsilon=2"),
        (lambda: breadcrumbs(TASKS, gamma=1), "gamma=1"),
        (lambda: ties(TASKS, weights=[1]), "3 task vectors need as many weights"),
        (lambda: linear(TASKS, weights=[1, 1, math.nan]), "each is a finite number"),
        (lambda: slerp(TASKS[:2], weights=[-1, 1]), "none is below 0"),
        (lambda: Recipe("average", density=0.2), "density=0.2 has no effect with method average"),
        (lambda: Recipe("ties", gamma=0.2), "gamma=0.2 has no effect with method ties"),
        (lambda: Recipe("della", scope="model"), "take scope=tensor"),
        (lambda: Recipe("linear", scope="model"), "scope=model has no effect"),
        (lambda: Recipe("ties", rank=0), "rank=0"),
        (lambda: Recipe("tiez"), "Did you mean ties"),
        (lambda: Recipe("ties", component_weights={"visio": (1,)}), "Did you mean vision"),
    ],
)
def test_bad_knobs_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_the_kth_largest_of_a_stream_is_exact():
    values = torch.randn(2, 3000)
    values[0, :1000] = 0
    values[1, 7] = 0.0
    expected = values.abs().sort(dim=1, descending=True).values
    pieces = [(0, values[0, 1000:]), *((1, piece) for piece in values[1].split(700))]
    ranks = (0, 1, 2, 1500, 2000, 2001, 3000)
    found = kth_largest(lambda: iter(pieces), 3000, 2, ranks)
    assert found[:, 0].isinf().all()
    for i, rank in enumerate(ranks[1:], start=1):
        assert torch.equal(found[:, i], expected[:, rank - 1])


def _parts():
    """Two adapters: a product and a tensor in both, a tensor in one alone."""
    torch.manual_seed(0)
    parts = [{"v.a": LowRank(torch.randn(20, 4), torch.randn(4, 30)), "l.b": torch.randn(7)}]
    parts.append({"v.a": LowRank(torch.randn(20, 2), torch.randn(2, 30)), "l.b": torch.randn(7)})
    parts[1]["l.c"] = torch.randn(5, 5)
    return parts


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        (name, scope)
        for name, rule in RULES.items()
        for scope in ("model", "component", "tensor")
        if scope == "tensor" or not rule.whole_tensors
    ],
)
def test_merging_tensor_by_tensor_is_merging_the_whole_vector(name, scope, monkeypatch):
    """Thresholds and angles are those of the scope, in pieces too; what an adapter lacks is zero."""
    rule, parts = RULES[name], _parts()
    has_scope = rule.needs_gram or rule.counts or rule.whole_tensors
    monkeypatch.setattr("vlmpeft.merging.engine.PIECE", 100 if not rule.is_random else 2**23)
    recipe = Recipe(
        name,
        scope=scope if has_scope else None,
        weights=(1.0, 0.5) if "weights" in rule.knobs else None,
    )
    found = {n: dense(d) for n, d in merge(parts, recipe, lambda n: n[0])}
    keys = {"model": lambda n: "", "component": lambda n: n[0], "tensor": lambda n: n}
    generator = torch.Generator().manual_seed(0)
    extra = {"generator": generator} if rule.is_random else {}
    if rule.is_random and not rule.whole_tensors:
        scope = "tensor"  # draws follow the tensors
    groups = {}
    for n in found:
        groups.setdefault(keys[scope](n), []).append(n)
    for names in groups.values():
        rows = [
            torch.cat([dense(p[n]).flatten() if n in p else 0 * found[n].flatten() for n in names])
            for p in parts
        ]
        expected = rule.merge(torch.stack(rows), **recipe.knobs(""), **extra)
        ours = torch.cat([found[n].flatten() for n in names])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_a_component_are_its_own():
    parts = _parts()
    recipe = Recipe("linear", weights=(1.0, 0.0), component_weights={"vision": (0.0, 1.0)})
    found = dict(merge(parts, recipe, lambda n: {"v": "vision", "l": "language"}[n[0]]))
    torch.testing.assert_close(dense(found["v.a"]), parts[1]["v.a"].dense())
    torch.testing.assert_close(found["l.b"], parts[0]["l.b"])


@pytest.mark.parametrize("name", [name for name in RULES if "weights" in RULES[name].knobs])
def test_every_rule_takes_a_component_s_own_weights(name):
    """Vision as if all had its weights, language as if all had the others'."""
    parts, components = _parts(), {"v": "vision", "l": "language"}
    scope = "tensor" if RULES[name].counts or RULES[name].needs_gram else None

    def merged(**weights):
        recipe = Recipe(name, scope=scope, **weights, **_knobs(name))
        found = merge(parts, recipe, lambda n: components[n[0]])
        return {n: dense(d) for n, d in found}

    first, second = merged(weights=(1.0, 0.25)), merged(weights=(0.25, 2.0))
    assert all(not torch.allclose(first[n], second[n]) for n in ("v.a", "l.b"))
    both = merged(weights=(1.0, 0.25), component_weights={"vision": (0.25, 2.0)})
    expected = {n: (second if n.startswith("v") else first)[n] for n in first}
    assert all(torch.equal(both[n], expected[n]) for n in expected)


@pytest.mark.parametrize("name", [name for name in RULES if "lam" in RULES[name].knobs])
def test_lam_scales_what_every_rule_merges(name):
    whole, half = (
        {
            n: dense(d)
            for n, d in merge(_parts(), Recipe(name, lam=lam, **_knobs(name)), lambda n: n[0])
        }
        for lam in (1.0, 0.5)
    )
    for n, delta in whole.items():
        assert delta.abs().max() > 0
        torch.testing.assert_close(half[n], delta / 2)


def test_a_weighted_sum_of_products_is_refactored_exactly():
    """Against a decomposition of the dense sum in fp64."""
    parts = [LowRank(torch.randn(60, 4), torch.randn(4, 50)) for _ in range(3)]
    whole = weighted_sum(parts, (0.5, -1.0, 2.0))
    expected = 0.5 * parts[0].dense() - parts[1].dense() + 2 * parts[2].dense()
    exact, share = whole.truncated()
    assert (exact.rank, share) == (12, 1.0)
    torch.testing.assert_close(exact.dense(), expected, rtol=1e-4, atol=1e-4)
    u, s, v = torch.linalg.svd(expected.double(), full_matrices=False)
    best, share = whole.truncated(5)
    torch.testing.assert_close(
        best.dense().double(), (u[:, :5] * s[:5]) @ v[:5], rtol=1e-3, atol=1e-3
    )
    assert share == pytest.approx(float(s[:5].square().sum() / s.square().sum()), rel=1e-5)


@pytest.mark.parametrize("rank", [3, 40])
def test_the_best_of_a_rank_keeps_what_the_singular_values_say(rank):
    matrix = torch.randn(120, 80) @ torch.diag(torch.linspace(0.01, 3, 80).square())
    s = torch.linalg.svdvals(matrix.double())
    found, share = best_of_rank(matrix, rank)
    expected = float(s[:rank].square().sum() / s.square().sum())
    assert (found.rank, share) == (rank, pytest.approx(expected, rel=2e-3))
    left = (matrix - found.dense()).square().sum() / matrix.square().sum()
    assert left.item() == pytest.approx(1 - expected, abs=2e-3)


def test_every_rule_can_be_named_in_a_config_and_has_a_row_in_the_docs():
    assert get_args(RuleName) == tuple(RULES)
    section = (ROOT / "docs/merging.md").read_text().split("## Rules")[1].split("\n## ")[0]
    rows = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert rows[1:] == [*RULES]  # below the header
