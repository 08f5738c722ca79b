"""Curves over ranks, data, steps and singular values; expected values come from the records by other ways."""

import math
import statistics

import numpy as np
import pytest
from numpy.testing import assert_allclose

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import write_json
from vlmpeft.study.report.convergence import (
    convergence,
    losses_of,
    read_losses,
    running_mean,
    steps_to,
)
from vlmpeft.study.report.info import Row
from vlmpeft.study.report.run import Run

from .drawn_plots import drawn, lines, records_of
from .records import run_folder, write_losses, write_study

# -- curves ----------------------------------------------------------------------------------------


def test_a_rank_curve_is_the_means_by_rank_where_alpha_follows_the_rank(tmp_path):
    rows, scores = [], {}
    for targets in ("qv", "all"):
        for r in (16, 4, 64):
            rows.append(
                Row(f"{targets}{r}", "x", variables={"r": r, "alpha": 2 * r, "targets": targets})
            )
            scores[f"{targets}{r}"] = [math.log(r) / 10, math.log(r) / 5]
    write_study(tmp_path, rows, records_of(scores))
    (axes,) = drawn(tmp_path, "rank")
    assert lines(axes).keys() == {"targets=qv", "targets=all"}
    for line in lines(axes).values():
        expected = [[r, 15 * math.log(r)] for r in (4, 16, 64)]
        assert_allclose(line.get_xydata(), expected)


def test_ranks_of_plans_make_a_curve_where_there_are_no_variables(tmp_path):
    def plan(r):
        lora = {
            "class_path": "vlmpeft.LoRA",
            "init_args": {"r": r, "alpha": 2.0 * r, "targets": ["q"]},
        }
        return {"model": {"plan": {"language": lora}}}

    configs = {"one": plan(4), "two": plan(8)}
    write_study(tmp_path, configs, records_of({"one": [0.2], "two": [0.4]}, config=configs))
    (axes,) = drawn(tmp_path, "rank")
    assert_allclose(lines(axes)["rows"].get_xydata(), [[4, 20], [8, 40]])


def test_a_searched_learning_rate_breaks_no_curve_and_unequal_targets_are_two(tmp_path):
    def plan(r, targets, rate):
        init = {"r": r, "alpha": 2.0 * r, "targets": targets, "learning_rate": rate}
        return {"model": {"plan": {"language": {"class_path": "LoRA", "init_args": init}}}}

    configs = {
        "a": plan(4, ["q"], 1e-3), "b": plan(8, ["q"], 2e-3),
        "c": plan(4, ["v"], 3e-3), "d": plan(8, ["v"], 1e-3),
    }  # fmt: skip
    write_study(tmp_path, configs, records_of({name: [0.5] for name in configs}, config=configs))
    (axes,) = drawn(tmp_path, "rank")
    assert lines(axes).keys() == {"targets=[q]", "targets=[v]"}
    assert [len(line.get_xdata()) for line in lines(axes).values()] == [2, 2]


def test_rows_of_two_ranks_are_two_data_curves(tmp_path):
    def plan(r):
        return {"model": {"plan": {"language": {"class_path": "LoRA", "init_args": {"r": r}}}}}

    names = ("r4 few", "r4 many", "r8 few", "r8 many")
    configs = {name: plan(int(name[1])) for name in names}
    data = {n: {"train": {"conversations": 100 if n.endswith("few") else 200}} for n in names}
    write_study(tmp_path, names, records_of({n: [0.5] for n in names}, config=configs, data=data))
    (axes,) = drawn(tmp_path, "data_scaling")
    assert lines(axes).keys() == {"r=4", "r=8"}


def test_matched_ranks_of_unlike_components_are_no_curve(tmp_path):
    def plan(component, r):
        lora = {"class_path": "LoRA", "init_args": {"r": r}}
        return {"model": {"plan": {component: lora}}}

    configs = {"vision": plan("vision", 16), "projector": plan("projector", 77)}
    rows = [Row(name, name, variables={"component": name}) for name in configs]
    write_study(tmp_path, rows, records_of({name: [0.5] for name in configs}, config=configs))
    with pytest.raises(UserError, match="no rows differ in their rank only"):
        drawn(tmp_path, "rank")


def test_curves_are_called_by_the_labels_of_the_study(tmp_path):
    def plan(targets, r):
        lora = {"class_path": "LoRA", "init_args": {"r": r, "alpha": 2 * r, "targets": targets}}
        return {"model": {"plan": {"language": lora}}}

    targets = {"qv": ["q_proj", "v_proj"], "all": ["q_proj", "k_proj"]}
    rows = [
        Row(f"{name}{r}", "x", variables={"targets": name, "r": r, "alpha": 2 * r})
        for name in targets
        for r in (4, 8)
    ]
    configs = {
        row.name: plan(targets[row.variables["targets"]], row.variables["r"]) for row in rows
    }
    write_study(tmp_path, rows, records_of({name: [0.5] for name in configs}, config=configs))
    (axes,) = drawn(tmp_path, "rank")
    assert lines(axes).keys() == {"targets=qv", "targets=all"}


def test_a_variable_that_the_model_s_settings_do_not_show_tells_lines_apart(tmp_path):
    lora = {"class_path": "LoRA", "init_args": {}}
    config = {"model": {"plan": {"language": lora}}}
    rows = [
        Row(f"{p}{r}", "x", variables={"r": r, "pixels": p})
        for p in ("few", "many")
        for r in (4, 8)
    ]
    scores = {row.name: [0.5] for row in rows}
    write_study(tmp_path, rows, records_of(scores, config=dict.fromkeys(scores, config)))
    (axes,) = drawn(tmp_path, "rank")
    assert lines(axes).keys() == {"pixels=few", "pixels=many"}


def test_a_data_curve_is_over_the_conversations_of_the_records(tmp_path):
    sizes = {"few": {"train": {"conversations": 100}}, "many": {"train": {"conversations": 1600}}}
    write_study(tmp_path, sizes, records_of({"many": [0.6, 0.8], "few": [0.1, 0.3]}, data=sizes))
    (axes,) = drawn(tmp_path, "data_scaling")
    assert_allclose(lines(axes)["rows"].get_xydata(), [[100, 20], [1600, 70]])
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert_allclose([heights.min(), heights.max()], [20 - 14.142136, 70 + 14.142136])


# -- forgetting ------------------------------------------------------------------------------------


def test_learning_and_forgetting_are_differences_of_each_seed_before_the_mean(tmp_path):
    records = records_of({"a": [0.5, 0.7]})
    for record, before, after in zip(records, (0.9, 0.8), (0.6, 0.7), strict=True):
        record["metrics"]["base"]["retention"] = {"exact_match": before}
        record["metrics"]["tuned"]["retention"] = {"exact_match": after}
    write_study(tmp_path, ["a"], records)
    (axes,) = drawn(tmp_path, "forgetting")
    assert_allclose(lines(axes)["a"].get_xydata(), [[50, 20]])


# -- loss ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_running_mean_is_the_mean_of_the_values_up_to_here(window):
    values = np.random.default_rng(0).normal(size=20)
    expected = [statistics.mean(values[max(0, i - window + 1) : i + 1]) for i in range(20)]
    assert_allclose(running_mean(values, window), expected)


def test_the_faster_of_two_exponential_decays_gets_there_first_in_closed_form(tmp_path):
    rates = {"fast": 0.1, "slow": 0.02}
    for name, rate in rates.items():
        write_losses(tmp_path / name, 8 * np.exp(-rate * np.arange(400)))
    found = [(name, losses_of([Run(tmp_path / name, {})], window=1)) for name in rates]
    level = 8 - 0.9 * (8 - 8 * math.exp(-0.1 * 399))
    for one in convergence(found):
        exact = math.ceil(-math.log(level / 8) / rates[one.row]) + 1  # steps count from 1
        assert (one.to_common, one.reached, one.seeds) == (exact, 1, 1)


def test_a_row_that_does_not_get_there_says_so_and_by_how_many_seeds(tmp_path):
    write_losses(tmp_path / "good", np.linspace(5, 0, 50))
    write_losses(tmp_path / "stuck", np.full(50, 5.0))
    good, stuck = Run(tmp_path / "good", {}), Run(tmp_path / "stuck", {})
    a, b = convergence([("a", losses_of([good, stuck])), ("b", losses_of([stuck]))])
    assert (a.reached, a.seeds, b.reached, b.seeds) == (0, 2, 0, 1) or (a.reached, a.seeds) == (
        1,
        2,
    )
    assert math.isnan(b.to_common)
    assert steps_to(np.arange(3), np.array([3.0, 2.0, 1.0]), 2.0) == 2


def test_a_curve_is_the_mean_of_the_seeds_running_means(tmp_path):
    records = records_of({"a": [0.5, 0.7]})
    write_study(tmp_path, ["a"], records)
    losses = np.random.default_rng(0).uniform(1, 2, (2, 120))
    for record, values in zip(records, losses, strict=True):
        write_losses(run_folder(tmp_path, record), values)
    (axes,) = drawn(tmp_path, "loss")
    expected = (running_mean(losses[0], 5) + running_mean(losses[1], 5)) / 2
    assert_allclose(lines(axes)["a"].get_xydata(), np.stack([np.arange(1, 121), expected], 1))
    assert "mean of the last 5 steps" in axes.get_ylabel()


def test_damaged_lines_of_losses_are_left_out(tmp_path):
    text = (
        "step,name,value\n0,train/loss,2.0\n1,train/loss,x\nrubbish\n2,val/loss,9\n3,train/loss,1."
    )
    (tmp_path / "metrics.csv").write_text(text)
    steps, values = read_losses(Run(tmp_path, {}))
    assert (steps.tolist(), values.tolist()) == ([0, 3], [2.0, 1.0])


# -- spectrum --------------------------------------------------------------------------------------


def test_a_spectrum_is_the_median_of_a_components_matrices_and_ends_at_their_rank(tmp_path):
    components = {
        "vision": {"roots": ["model.vision"]},
        "projector": {"roots": ["model.vision.projector"]},
        "language": {"roots": ["model.language", "lm_head"]},
    }
    records = records_of({"a": [0.5]}, components={"a": components})
    write_study(tmp_path, ["a"], records)
    spectrum = {
        "model.language.q.weight": [4, 2, 0],
        "model.language.v.weight": [2, 1, 1e-9],
        "lm_head.weight": [9, 1, 0.5],
        "model.vision.q.weight": [3],
        "model.vision.projector.weight": [7],
    }
    write_json(run_folder(tmp_path, records[0]) / "spectrum.json", spectrum)
    vision, projector, language = axes = drawn(tmp_path, "spectrum")
    assert [one.get_title() for one in axes] == ["vision", "projector", "language"]
    assert_allclose(lines(projector)["a"].get_ydata()[:2], [7, np.nan])
    assert_allclose(lines(vision)["a"].get_ydata()[:2], [3, np.nan])
    assert_allclose(lines(language)["a"].get_ydata()[:4], [4, 1, 0.5, np.nan])
