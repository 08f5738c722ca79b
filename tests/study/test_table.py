"""A table shows what the records and items say; expected values come from the raw files by other ways."""

import csv
import gzip
import io
import json
import re
import shutil
import statistics
from dataclasses import asdict, replace

import pytest

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import write_json
from vlmpeft.study.report.entries import Block, Entry
from vlmpeft.study.report.formats.csv_lines import as_csv
from vlmpeft.study.report.formats.html_page import html
from vlmpeft.study.report.formats.latex import latex
from vlmpeft.study.report.formats.markdown import markdown
from vlmpeft.study.report.layout import make_table
from vlmpeft.study.report.records import read_study
from vlmpeft.study.report.score_cells import verdict
from vlmpeft.study.report.spec import Pivot, Spec
from vlmpeft.study.report.statistics import compare_rows, in_family

from ..conftest import ROOT
from .made_runs import made_row
from .made_study import ROWS, SIZES, SKILL, write_made_study

FORMATS = {
    "md": lambda t: markdown([t]),
    "tex": lambda t: latex([t]),
    "html": lambda t: html([t], "t"),
    "csv": as_csv,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_made_study(tmp_path_factory.mktemp("study") / "made")


@pytest.fixture
def copied(folder, tmp_path):
    """A study that a test may change."""
    return shutil.copytree(folder, tmp_path / "made")


@pytest.fixture(scope="module")
def table(folder):
    return make_table(read_study(folder))


def tabled(folder, **spec):
    return make_table(read_study(folder), Spec(**spec))


def lines_of(table):
    """The lines of the CSV by row and task."""
    lines = csv.DictReader(io.StringIO(as_csv(table)))
    return {(line["row"], line["task"]): line for line in lines}


def texts(table, column, task=None):
    """Row -> text of a column, of a task where there are several."""
    place = next(
        n
        for n, c in enumerate(table.columns)
        if c.name == column and (task is None or task in c.above)
    )
    return {row.name: row.cells[place].text for row in table.rows}


def raw_scores(folder, task, row):
    """Every seed's mean score, from the items as they lie on disk."""
    means = []
    for path in sorted((folder / "runs" / "tiny" / task / row).glob("seed*/items.jsonl.gz")):
        items = list(map(json.loads, gzip.decompress(path.read_bytes()).splitlines()))
        means.append(sum(item["scores"]["exact_match"] for item in items) / len(items))
    return means


def change_info(folder, **changed):
    """Change study.json."""
    info = json.loads((folder / "study.json").read_text())
    write_json(folder / "study.json", info | changed)


def change_record(path, old, new):
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def record_of(folder, task="format", row="lora_l", seed=0):
    return folder / "runs" / "tiny" / task / row / f"seed{seed}" / "result.json"


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


# -- what is missing -------------------------------------------------------------------------------


def test_missing_seeds_failures_and_illegal_cells_are_told(table):
    assert texts(table, "n", "gauge")["prompt_l"] == "2 of 3"
    assert texts(table, "score", "gauge")["prompt_v"] == "-"
    assert list(table.footnotes) == [
        "seed 2 failed: CUDA out of memory: tried to allocate 2 GiB",
        "vision has 4 patches, 8 prompts are more",
    ]
    cell = next(row for row in table.rows if row.name == "lora_v").cells
    assert [c.reasons for c in cell if c.reasons] == [(next(iter(table.footnotes)),)]


def test_a_row_of_which_every_run_failed_says_so(copied):
    for seed in range(3):
        path = record_of(copied, row="prompt_v", seed=seed)
        write_json(path, json.loads(path.read_text()) | {"status": "failed", "error": "no"})
    table = tabled(copied)
    assert texts(table, "score", "format")["prompt_v"] == "failed"
    assert texts(table, "n", "format")["prompt_v"] == "0 of 3"
    assert texts(table, "score", "gauge")["full"] == texts(tabled(copied), "score", "gauge")["full"]


def test_a_damaged_record_is_named_and_left_out(copied):
    record_of(copied, seed=1).write_text('{"status": "do')
    table = tabled(copied)
    assert texts(table, "n", "format")["lora_l"] == "2 of 3"
    assert any(
        "Left out: record runs/tiny/format/lora_l/seed1/result.json" in n for n in table.notes
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"metrics": None}, "has no mapping as metrics;"),
        ({"metrics": {"base": {}, "tuned": {}}}, "has no scores on test or val or retention;"),
        ({"primary": None}, "has as primary not text;"),
        (
            {"metrics": {"tuned": {"test": {"exact_match": "1"}}}},
            "has as metrics.tuned.test.exact_match not a number;",
        ),
        (
            {"search": {"candidates": [{"settings": 3}]}},
            "has no mapping as search.candidates[0].settings;",
        ),
        ({"search": {"at_edge": "r"}}, "has no list as search.at_edge;"),
    ],
)
def test_a_record_of_another_shape_is_damaged(copied, change, reason):
    path = record_of(copied, seed=1)
    write_json(path, json.loads(path.read_text()) | change)
    table = tabled(copied)
    assert texts(table, "n", "format")["lora_l"] == "2 of 3"
    assert any(f"runs/tiny/format/lora_l/seed1/result.json {reason}" in n for n in table.notes)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (("2.13.0", "2.14.0"), "Mixed versions of torch: 2.13.0 (26 records), 2.14.0 (1 records)."),
        (("cpu, 2 threads", "H100"), "Mixed devices: H100 (1 records), cpu, 2 threads (26 records)."),
        (('"language": "lora_l"', '"language": "other"'), "lora_l on format: seed 0 differs from the other seeds in plan.language (other, not lora_l)."),
        (('"tried": 3', '"tried": 2'), "unequal budgets: 2 to 3 settings tried."),
        (('"at_edge": []', '"at_edge": ["model.learning_rate"]'), "at the edge of those tried: lora_l on format: learning_rate."),
        (("format-test", "other"), "format: the runs were scored on 2 different sets of data."),
        (('"seed": 0,\n "base"', '"seed": 1,\n "base"'), "lora_l on format has 2 records of seed 1."),
    ],
)  # fmt: skip
def test_what_is_mixed_among_the_records_is_a_note(copied, change, note):
    assert not any(note in one for one in tabled(copied).notes)
    change_record(record_of(copied), *change)
    assert any(note in one for one in tabled(copied).notes)


def test_every_character_of_a_record_counts(copied):
    before = {name: write(tabled(copied)) for name, write in FORMATS.items()}
    change_record(record_of(copied), "0.9", "0.8")
    after = {name: write(tabled(copied)) for name, write in FORMATS.items()}
    assert all(before[name] != after[name] for name in FORMATS)
    change_record(record_of(copied), '"name": "LoRA"', '"name": "LoRB"')  # nothing that is shown
    assert markdown([tabled(copied)]) != after["md"]


def test_equal_records_give_equal_bytes_wherever_they_are(folder, copied):
    for write in FORMATS.values():
        text = write(tabled(copied))
        assert text == write(tabled(folder))
        assert str(copied) not in text
        assert "/home/" not in text


# -- spec ------------------------------------------------------------------------------------------


def test_groups_stand_together_under_their_headings(folder, copied):
    change_info(copied, rows=[asdict(ROWS[n]) for n in (2, 0, 4, 3, 1)])
    assert [row.name for row in tabled(copied).rows] == [
        "base",
        "full",
        "prompt_v",
        "prompt_l",
        "lora_v",
        "lora_l",
    ]
    renamed = tabled(folder, groups={"prompt tuning": "Prompts", "LoRA": None})
    assert [group for group, _ in renamed.groups()] == [None, "Prompts", "LoRA"]
    as_column = tabled(folder, columns={"row": None, "group": "kind"})
    assert [group for group, _ in as_column.groups()] == [None]
    assert texts(as_column, "group")["lora_v"] == "LoRA"


def test_a_spec_names_rows_and_tasks_and_leaves_out_the_others(folder):
    table = tabled(folder, rows={"lora_l": "Ours", "full": None}, tasks={"gauge": "Needles"})
    assert texts(table, "row") == {"lora_l": "Ours", "full": "full fine-tuning"}
    assert any(note.startswith("Reference: Ours.") for note in table.notes)
    assert {line["task"] for line in lines_of(table).values()} == {"gauge"}


def test_columns_with_nothing_to_show_are_left_out_unless_a_spec_names_them(copied):
    change_info(copied, reference=None, full=None)
    names = {column.name for column in tabled(copied).columns}
    assert not {"difference", "p", "percent_of_full"} & names
    assert {"score", "n", "blank"} <= names
    named = tabled(copied, columns=dict.fromkeys(["row", "score", "p"]))
    assert set(texts(named, "p", "format").values()) == {"-"}


def test_one_task_takes_no_level_of_headings(folder, table):
    assert list(tabled(folder, tasks={"format": None}).headings()) == []
    assert [title for title, _ in next(table.headings())] == ["", "format", "gauge"]
    both = tabled(folder, metrics={"exact_match": "EM", "exact_match_chance_corrected": "CC"})
    assert [title for title, _ in list(both.headings())[1]] == ["", "", "EM", "CC", "", "EM", "CC"]


def test_a_grid_has_the_cells_of_the_plain_table(folder, table):
    grid = tabled(folder, pivot=Pivot("method", "component"), tasks={"format": None})
    assert [c.title for c in grid.columns] == ["method", "vision", "language", "whole row"]
    shown = {row.name: [cell.text for cell in row.cells[1:]] for row in grid.rows}
    plain = texts(table, "score", "format")
    assert shown == {
        "LoRA": [plain["lora_v"], plain["lora_l"], ""],
        "prompt": [plain["prompt_v"], plain["prompt_l"], ""],
        "zero-shot": ["", "", plain["base"]],
        "full fine-tuning": ["", "", plain["full"]],
    }

    assert grid.notes[0] == "Seeds of a cell: 3."
    assert grid.notes[1] == "Trainable parameters of a cell: 768 to 36,864."


def test_two_rows_in_one_place_of_a_grid_are_an_error(copied):
    twice = [*ROWS, replace(ROWS[0], name="again", group=None)]
    change_info(copied, rows=[asdict(row) for row in twice])
    with pytest.raises(UserError, match="again and lora_v are both method=LoRA, component=vision"):
        tabled(copied, pivot=Pivot("method", "component"))


# -- other folders ---------------------------------------------------------------------------------


def test_committed_records_of_fits_give_what_the_headers_of_configs_say(tmp_path):
    for path in (ROOT / "results" / "format").glob("*.json"):
        (tmp_path / "format" / path.stem).mkdir(parents=True)
        shutil.copy(path, tmp_path / "format" / path.stem / "result.json")
    scores = texts(tabled(tmp_path / "format"), "score")
    for row in ("lora_r16", "lora_r64", "qv_r16"):
        header = (ROOT / "configs" / f"{row}.yaml").read_text()
        assert f"-> {scores[row]} % on test" in header


def test_a_failed_fit_without_a_task_is_in_the_row_of_its_config(tmp_path):
    source = ROOT / "results" / "format" / "lora_r16-seed0.json"
    for seed in (0, 1):
        (tmp_path / f"lora-seed{seed}").mkdir()
        shutil.copy(source, tmp_path / f"lora-seed{seed}" / "result.json")
    config = json.loads(source.read_text())["config"] | {"seed_everything": 1}
    failed = {"schema": 1, "status": "failed", "error": "at /home/me/x.py: no", "config": config}
    write_json(tmp_path / "lora-seed1" / "result.json", failed)
    table = tabled(tmp_path)
    assert list(table.footnotes) == ["seed 1 failed: at x.py: no"]
    assert texts(table, "n") == {"base": "-", "lora": "1"}
