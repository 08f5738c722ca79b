"""A table shows what the records and items say; expected values come from the raw files by other ways."""

import re
import statistics

import pytest

from vlmpeft.study.report.entries import Block, Entry
from vlmpeft.study.report.formats.html_page import html
from vlmpeft.study.report.formats.latex import latex
from vlmpeft.study.report.formats.markdown import markdown
from vlmpeft.study.report.score_cells import verdict
from vlmpeft.study.report.statistics import compare_rows, in_family

from .made_runs import made_row
from .made_study import ROWS, SIZES, SKILL
from .reading_tables import change_info, lines_of, raw_scores, tabled, texts

# -- numbers ---------------------------------------------------------------------------------------


def test_scores_are_mean_and_sample_deviation_of_the_items_on_disk(folder, table):
    lines, compared = lines_of(table), 0
    for task, skills in SKILL.items():
        for row in skills:
            values = raw_scores(folder, task, row)
            mean, sd = statistics.mean(values), statistics.stdev(values)
            assert float(lines[row, task]["score"]) == pytest.approx(mean, abs=1e-12)
            assert float(lines[row, task]["score_sd"]) == pytest.approx(sd, abs=1e-12)
            assert texts(table, "score", task)[row] == f"{100 * mean:.1f} +- {100 * sd:.1f}"
            assert int(lines[row, task]["n"]) == len(values)
            compared += 1
    assert compared == 9


def test_differences_are_of_the_rows_means_and_inside_their_interval(folder, table):
    lines, compared = lines_of(table), 0
    for (row, task), line in lines.items():
        if line["difference"]:
            expected = statistics.mean(raw_scores(folder, task, row)) - statistics.mean(
                raw_scores(folder, task, "lora_l")
            )
            assert float(line["difference"]) == pytest.approx(expected, abs=1e-12)
            assert float(line["difference_low"]) <= expected <= float(line["difference_high"])
            compared += 1
    assert compared == 7
    assert set(texts(table, "difference", "format").values()) >= {"reference", "-"}


def test_trainable_counts_are_integers_and_percent_is_of_base_plus_added(table):
    lines = lines_of(table)
    for row, size in SIZES.items():
        assert texts(table, "trainable")[row] == f"{size:,}"
        added = 0 if row == "full" else size
        assert float(lines[row, "format"]["percent"]) == 100 * size / (1_450_816 + added)
    assert texts(table, "trainable")["base"] == "0"


def test_percent_of_full_is_the_ratio_of_the_mean_scores(folder, table):
    mean = {row: statistics.mean(raw_scores(folder, "gauge", row)) for row in SKILL["gauge"]}
    for row, value in mean.items():
        assert texts(table, "percent_of_full", "gauge")[row] == f"{100 * value / mean['full']:.1f}"


def test_the_base_is_the_first_row_and_its_score_the_record_s(table):
    assert [row.name for row in table.rows][:2] == ["base", "full"]
    assert texts(table, "score", "format")["base"] == "5.0"
    assert texts(table, "n", "format")["base"] == "-"


def test_retention_is_the_source_task_after_training_and_its_change_to_before(table):
    # 0.90, 0.89, 0.88 after, 0.98 before
    assert texts(table, "retention", "format")["lora_l"] == "89.0 +- 1.0"
    assert texts(table, "retention_change", "format")["lora_l"] == "-9.0"
    assert texts(table, "retention", "format")["base"] == "98.0"
    assert texts(table, "blank", "format")["lora_l"] == "25.0 +- 0.0"


def test_every_column_of_cost_is_what_the_records_say(folder):
    names = "chance_corrected val loss learning_rate search steps fit_seconds memory adapter_bytes"
    names = dict.fromkeys(["row", *names.split(), "tokens_per_second", "method"])
    table = tabled(folder, columns=names, tasks={"format": None})
    shown = {name: texts(table, name)["lora_l"] for name in names}
    (mean,) = [statistics.mean(raw_scores(folder, "format", "lora_l"))]
    spread = statistics.stdev(raw_scores(folder, "format", "lora_l"))
    assert shown.pop("chance_corrected") == f"{125 * mean - 25:.1f} +- {125 * spread:.1f}"
    assert shown.pop("val") == f"{100 * mean:.1f} +- {100 * spread:.1f}"
    assert shown.pop("loss") == f"{3 - mean:.3f} +- {spread:.3f}"
    assert shown == {
        "row": "LoRA, language",
        "learning_rate": "3e-3",
        "search": "3",
        "steps": "100",
        "fit_seconds": "60.0",
        "memory": "0.10",  # 1e8 bytes
        "adapter_bytes": "4,000",
        "tokens_per_second": "100",  # 6,000 in 60 s
        "method": "LoRA",
    }


# -- significance ----------------------------------------------------------------------------------


def test_nothing_is_bold_without_significance(table):
    lines, bold = lines_of(table), set()
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell.verdict == "better":
                bold.add((row.name, column.above[0]))
    significant = {
        key
        for key, line in lines.items()
        if line["p"] and float(line["p"]) < 0.05 and float(line["difference_low"]) > 0
    }
    assert bold == significant
    assert bold
    assert markdown([table]).count("**") == 2 * len(bold)
    assert html([table], "t").count("<strong>") == len(bold)
    assert latex([table]).count(r"\textbf{") == len(bold)


@pytest.mark.parametrize(
    ("metric", "expected"), [("exact_match", "better"), ("numeric_error", "worse")]
)
def test_a_larger_score_is_better_unless_lower_is(metric, expected):
    low, high = (
        made_row([[0, 1] * 40] * 2, metric=metric),
        made_row([[1, 1] * 40] * 2, metric=metric),
    )
    (comparison,) = in_family([compare_rows(low, high, metric)])
    entry = Entry(ROWS[0], Block("b", "t", metric), tuple(high), comparison=comparison)
    assert verdict(entry) == expected


def test_a_row_that_is_worse_has_a_dagger(table):
    worse = {key for key, line in lines_of(table).items() if line["score_verdict"] == "worse"}
    assert worse == {("lora_v", "format"), ("prompt_v", "format")}
    assert re.search(r"31\.1 \+- 2\.7 \u2020", markdown([table]))


def test_equivalent_rows_are_marked_where_the_margin_is_wide(folder, copied):
    change_info(copied, margin=0.3)
    marked = {
        key
        for key, line in lines_of(tabled(copied)).items()
        if line["score_verdict"] == "equivalent"
    }
    assert ("prompt_l", "format") in marked
    assert not any(
        line["score_verdict"] == "equivalent" for line in lines_of(tabled(folder)).values()
    )


@pytest.mark.parametrize("family", ["block", "table"])
def test_p_is_adjusted_by_holm_within_the_stated_family(folder, family):
    names = dict.fromkeys(["row", "p", "p_raw"])
    lines = lines_of(tabled(folder, family=family, columns=names))
    tested = [(key, float(line["p_raw"])) for key, line in lines.items() if line["p_raw"]]
    for (row, task), adjusted in ((key, float(lines[key]["p"])) for key, _ in tested):
        others = sorted(p for (_, of), p in tested if family == "table" or of == task)
        own = float(lines[row, task]["p_raw"])
        # Holm: the largest of (m - k) p_k over all p_k up to one's own
        steps = [(len(others) - k) * p for k, p in enumerate(others) if p <= own]
        assert adjusted == pytest.approx(min(1, max(steps)))
    assert len(tested) == 7


def test_rows_outside_of_a_named_family_are_compared_but_not_tested(folder):
    lines = lines_of(tabled(folder, family=("full",)))
    assert lines["full", "gauge"]["p"] == pytest.approx(lines["full", "gauge"]["p"])
    assert lines["full", "gauge"]["score_verdict"] == "better"
    assert lines["lora_v", "format"]["difference"]
    assert not lines["lora_v", "format"]["p"]
    assert not lines["lora_v", "format"]["score_verdict"]


def test_a_metric_that_items_have_no_scores_of_is_shown_and_not_compared(folder):
    table = tabled(folder, metrics={"loss": None})
    assert texts(table, "score", "format")["base"] == "9.000"
    assert any("is not compared: items of runs/tiny" in note for note in table.notes)
