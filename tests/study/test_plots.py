"""Plots draw the numbers that the records have; expected values come from the records by other ways."""

import json
import random
import statistics
from xml.etree import ElementTree as ET

import pytest
from numpy.testing import assert_allclose

from vlmpeft.__main__ import main
from vlmpeft.runtime.errors import UserError
from vlmpeft.study.report.info import Row
from vlmpeft.study.report.plots.canvas import COLOURS, MARKERS, Mark, as_png, as_svg
from vlmpeft.study.report.plots.drawing import KINDS, draw
from vlmpeft.study.report.plots.pareto import pareto_front
from vlmpeft.study.report.records import read_study

from .drawn_plots import SCORES, SIZES, drawn, line_called, lines, records_of
from .records import make_record, run_folder, write_losses, write_study

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
