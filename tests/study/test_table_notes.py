"""What a table says of records that are missing or mixed, and what a spec chooses."""

import json
import shutil
from dataclasses import asdict, replace

import pytest

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import write_json
from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.formats.csv_lines import as_csv
from vlmpeft.study.report.formats.html_page import html
from vlmpeft.study.report.formats.latex import latex
from vlmpeft.study.report.formats.markdown import markdown
from vlmpeft.study.report.notes import detectable
from vlmpeft.study.report.records import read_study
from vlmpeft.study.report.spec import Pivot, Spec

from ..conftest import ROOT
from .made_study import ROWS
from .reading_tables import change_info, change_record, lines_of, record_of, tabled, texts

FORMATS = {
    "md": lambda t: markdown([t]),
    "tex": lambda t: latex([t]),
    "html": lambda t: html([t], "t"),
    "csv": as_csv,
}


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


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        (0.1, 0.25, "10.0 to 25.0 points"),
        (0.1, 3.76, "10.0 points to more than the whole scale"),
        (1.2, 3.76, "more than the whole scale; it takes more seeds or items to tell"),
    ],
)
def test_no_difference_beyond_the_scale_of_a_score_is_called_detectable(folder, least, most, said):
    contents = Contents(read_study(folder), Spec())
    assert detectable(contents, "exact_match", least, most) == said


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
