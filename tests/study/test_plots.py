"""Plots draw the numbers that the records have; expected values come from the records by other ways."""

import json
import math
import random
import statistics
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from numpy.testing import assert_allclose

from vlmpeft.__main__ import main
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
from vlmpeft.study.report.plots.canvas import COLOURS, MARKERS, Mark, as_png, as_svg
from vlmpeft.study.report.plots.drawing import KINDS, draw
from vlmpeft.study.report.plots.pareto import pareto_front
from vlmpeft.study.report.records import read_study
from vlmpeft.study.report.run import Run

from .records import make_record, run_folder, write_losses, write_study

SCORES = {"small": [0.5, 0.6, 0.7], "large": [0.7, 0.9, 0.8], "wasteful": [0.3, 0.35, 0.4]}
SIZES = {"small": 1000, "large": 50_000, "wasteful": 80_000}


def records_of(scores, **more):
    """One record a row and seed, of row -> scores by seed, and of row -> keys in `more`."""
    return [
        make_record(row, seed, score=score, **{key: of[row] for key, of in more.items()})
        for row, values in scores.items()
        for seed, score in enumerate(values)
    ]


def drawn(folder, kind, **options):
    """The axes of the only plot of a kind."""
    (plot,) = draw(read_study(folder), [kind], **options).plots
    return plot.figure.axes


def lines(axes):
    """Lines of rows, by their names."""
    return {line.get_gid(): line for line in axes.get_lines() if line.get_gid()}


def line_called(axes, label):
    return next(line for line in axes.get_lines() if line.get_label() == label)


# -- pareto ----------------------------------------------------------------------------------------


def test_a_point_is_the_mean_over_seeds_at_the_trained_parameters(tmp_path):
    write_study(tmp_path, SCORES, records_of(SCORES, trainable=SIZES), full="large")
    (axes,) = drawn(tmp_path, "pareto")
    assert lines(axes).keys() == SCORES.keys()
    for row, values in SCORES.items():
        assert_allclose(
            lines(axes)[row].get_xydata(), [[SIZES[row], 100 * statistics.mean(values)]]
        )
    bars = {c.lines[0].get_gid(): c.lines[2][0].get_segments()[0] for c in axes.containers}
    for row, values in SCORES.items():
        height = bars[row][1][1] - bars[row][0][1]
        assert_allclose(height, 2 * 100 * statistics.stdev(values))
    assert_allclose(line_called(axes, "zero-shot").get_ydata(), 10)
    assert_allclose(line_called(axes, "full fine-tuning").get_ydata(), 80)
    assert axes.get_ylabel() == "exact match, test (%); mean \N{PLUS-MINUS SIGN} sd of 3 seeds"
    assert_allclose(line_called(axes, "Pareto front").get_xdata(), [1000, 50_000])


@pytest.mark.parametrize("is_lower_better", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_every_point_that_no_other_dominates(seed, is_lower_better):
    rng = random.Random(seed)
    points = [(rng.randint(1, 6), rng.randint(0, 6)) for _ in range(rng.randint(1, 25))]
    sign = -1 if is_lower_better else 1

    def dominates(one, other):
        good, bad = sign * one[1], sign * other[1]
        return one[0] <= other[0] and good >= bad and (one[0] < other[0] or good > bad)

    expected = {i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)}
    found = pareto_front(*zip(*points, strict=True), is_lower_better=is_lower_better)
    assert {*found} == expected
    assert len(found) == len(expected) > 0
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


def test_a_loss_is_drawn_in_nats_and_its_front_goes_down(tmp_path):
    write_study(tmp_path, SCORES, records_of(SCORES, trainable=SIZES))
    (axes,) = drawn(tmp_path, "pareto", metrics=["loss"])
    assert axes.get_ylabel().startswith("loss, test (nats per token)")
    assert_allclose(lines(axes)["small"].get_xydata(), [[1000, 2 - 0.6]])
    assert_allclose(line_called(axes, "Pareto front").get_ydata(), [1.4, 1.2])


# -- heat map --------------------------------------------------------------------------------------


def cells(axes):
    """(column, line) -> text."""
    return {tuple(text.get_position()): text.get_text() for text in axes.texts}


def test_a_cell_holds_mean_and_deviation_of_its_row_and_one_that_was_not_run_a_dash(tmp_path):
    values = {"a": [0.5, 0.7], "b": [0.2, 0.4], "c": [0.9, 0.8]}
    variables = {"a": ("vision", "LoRA"), "b": ("language", "LoRA"), "c": ("language", "IA3")}
    rows = [
        Row(name, name, variables=dict(zip(("component", "method"), v, strict=True)))
        for name, v in variables.items()
    ]
    write_study(tmp_path, rows, records_of(values))
    axes, _ = drawn(tmp_path, "heat_map")
    assert [t.get_text() for t in axes.get_xticklabels()] == ["vision", "language"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["LoRA", "IA3"]
    text = {
        name: f"{100 * statistics.mean(v):.1f}\n\N{PLUS-MINUS SIGN} {100 * statistics.stdev(v):.1f}"
        for name, v in values.items()
    }
    assert cells(axes) == {(0, 0): text["a"], (1, 0): text["b"], (0, 1): "-", (1, 1): text["c"]}


def test_components_and_methods_of_records_make_a_heat_map_without_variables(tmp_path):
    def trained(component, strategy):
        return {component: {"trainable": 5, "strategies": [{"name": strategy, "trainable": 5}]}}

    parts = {"a": ("vision", "LoRA"), "b": ("language", "LoRA"), "c": ("language", "IA3")}
    records = records_of(
        {name: [0.5] for name in parts}, components={k: trained(*v) for k, v in parts.items()}
    )
    write_study(tmp_path, parts, records)
    axes, _ = drawn(tmp_path, "heat_map")
    assert cells(axes) == {(0, 0): "50", (1, 0): "50", (0, 1): "-", (1, 1): "50"}


def test_a_third_variable_gives_a_panel_a_value(tmp_path):
    rows = [
        Row(f"{c}{m}{b}", "x", variables={"component": c, "method": m, "base.bits": b})
        for c in ("vision", "language")
        for m in ("LoRA", "IA3")
        for b in ("nf4", "fp32")
    ]
    scores = {row.name: [0.25 if row.name.endswith("nf4") else 0.75] for row in rows}
    write_study(tmp_path, rows, records_of(scores))
    first, second, _ = drawn(tmp_path, "heat_map")
    assert (first.get_title(), second.get_title()) == ("bits=nf4", "bits=fp32")
    assert [*cells(first).values()] == ["25"] * 4
    assert [*cells(second).values()] == ["75"] * 4


def test_a_variable_that_goes_with_a_cell_and_a_row_without_variables_make_no_panel(tmp_path):
    rows = [Row("full", "full")]
    for component in ("vision", "language"):
        ours = {"component": component, "targets": f"of {component}", "method": "LoRA"}
        rows.append(Row(f"lora_{component}", "x", variables=ours))
        rows.append(
            Row(f"ia3_{component}", "x", variables={"component": component, "method": "IA3"})
        )
    write_study(tmp_path, rows, records_of({row.name: [0.5] for row in rows}), full="full")
    axes, _ = drawn(tmp_path, "heat_map")
    assert axes.get_title() == ""
    assert [*cells(axes).values()] == ["50"] * 4


def test_two_rows_in_one_cell_are_no_heat_map(tmp_path):
    rows = [Row(f"{c}{m}{n}", "x") for c in "ab" for m in "cd" for n in "ef"]
    parts = {
        row.name: {
            row.name[0]: {"trainable": 1, "strategies": [{"name": row.name[1], "trainable": 1}]}
        }
        for row in rows
    }
    write_study(tmp_path, rows, records_of({row.name: [0.5] for row in rows}, components=parts))
    with pytest.raises(UserError, match="rows ace and acf are both c x a"):
        drawn(tmp_path, "heat_map")


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


# -- all of them -----------------------------------------------------------------------------------


def test_what_the_records_lack_is_said_and_asked_for_it_is_an_error(tmp_path, capsys):
    write_study(tmp_path, SCORES, records_of(SCORES, trainable=SIZES))
    made = draw(read_study(tmp_path))
    assert [plot.kind for plot in made.plots] == ["pareto"]
    assert {line.partition(":")[0] for line in made.left_out} == {*KINDS} - {"pareto"}
    for kind in {*KINDS} - {"pareto"}:
        with pytest.raises(UserError, match=f"plot --kind {kind}: "):
            draw(read_study(tmp_path), [kind])
    assert main(["plot", str(tmp_path), "--kind", "spectrum"]) == 2
    assert "no run has a spectrum.json" in capsys.readouterr().err
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "paretto"], "Did you mean pareto?"),
        (["--task", "formt"], "Did you mean format?"),
        (["--metric", "exact"], "Did you mean exact_match?"),
    ],
)
def test_a_mistake_is_one_line_with_what_was_meant(tmp_path, capsys, options, message):
    write_study(tmp_path, ["a"], records_of({"a": [0.5]}))
    assert main(["plot", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_plots_are_written_as_png_and_svg_one_a_task(tmp_path, capsys):
    records = [make_record("a", 0, task, score=0.5) for task in ("format", "style")]
    write_study(tmp_path, ["a"], records)
    assert main(["plot", str(tmp_path), "--kind", "pareto", "--out", str(tmp_path / "o")]) == 0
    names = {f"pareto-{task}.{end}" for task in ("format", "style") for end in ("png", "svg")}
    assert {path.name for path in (tmp_path / "o").iterdir()} == names
    assert {line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()} == names


def test_another_metric_has_files_of_its_own_and_losses_are_drawn_once(tmp_path):
    record = make_record("a", 0, score=0.5)
    write_study(tmp_path, ["a"], [record])
    write_losses(run_folder(tmp_path, record), [3, 2, 1])
    made = draw(read_study(tmp_path), ["pareto", "loss"], ["exact_match", "loss"])
    names = ["pareto-format-exact_match", "pareto-format-loss", "loss-format"]
    assert [plot.name for plot in made.plots] == names


def test_the_same_records_give_the_same_bytes_without_a_date(tmp_path):
    write_study(tmp_path, SCORES, records_of(SCORES, trainable=SIZES))
    one, two = (draw(read_study(tmp_path)).plots[0].figure for _ in range(2))
    assert as_svg(one) == as_svg(two)
    assert as_png(one) == as_png(two)
    assert b"<dc:date>" not in as_svg(one)
    assert b"matplotlib" not in as_png(one)


def test_titles_from_anywhere_are_drawn_as_they_are(tmp_path):
    rows = [
        Row("a", "$x_{$ \x1b[31m\u202e"),
        Row("b", "_hidden"),
        Row("c", "\u6a21\u578b"),
        Row("d", "w" * 500),
        Row("e\x07", "<b>--\uffff"),
    ]
    write_study(tmp_path, rows, records_of({row.name: [0.5] for row in rows}), title="$\\frac{$")
    (axes,) = drawn(tmp_path, "pareto")
    assert ET.fromstring(as_svg(axes.figure)).tag.endswith("svg")
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[0] == "$x_{$ \\x1b[31m\\u202e"
    assert texts[1].strip() == "_hidden"
    assert len(texts[3]) < 60


def test_marks_tell_twenty_four_rows_apart_without_colour():
    marks = [Mark.of(position) for position in range(24)]
    assert len({(mark.marker, mark.is_filled) for mark in marks}) == 24
    assert len({*COLOURS}) == len(COLOURS)
    assert len({*MARKERS}) == len(MARKERS)


def test_records_that_are_odd_do_not_stop_the_others(tmp_path):
    records = records_of({"a": [0.5], "b": [float("nan")]})
    write_study(tmp_path, ["a", "b", "missing"], records)
    odd = run_folder(tmp_path, records[0])
    (odd / "spectrum.json").write_text(json.dumps({"w": ["x"], "v": 3}))
    (odd / "metrics.csv").write_bytes(b"\xff\x00,,,\n0,train/loss,nan\n")
    made = draw(read_study(tmp_path))
    assert {plot.kind for plot in made.plots} >= {"pareto"}
    for plot in made.plots:
        as_png(plot.figure)
