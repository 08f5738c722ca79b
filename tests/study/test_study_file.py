"""A study file is read as it is meant, or refused in one line with the key and the next move."""

import pytest

from vlmpeft.cli.config_files import find_config
from vlmpeft.cli.run_resolver import RunResolver
from vlmpeft.runtime.errors import UserError
from vlmpeft.study.report.info import Row, StudyInfo, check_folder, read_info, write_info
from vlmpeft.study.resolving import resolve_study
from vlmpeft.study.rows import count_runs, expand_rows
from vlmpeft.study.schema import STUDY_SCHEMA
from vlmpeft.study.spec import Match, Search
from vlmpeft.study.study_file import find_study, read_study_file

from ..conftest import ROOT, call
from .study_files import study

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_is_read_and_has_fewer_runs_than_it_would_have_to_ask_for(path):
    spec = read_study_file(path)
    assert expand_rows(spec)
    assert 0 < count_runs(spec) <= 500
    assert path.read_text().startswith("# ")
    assert f"python -m vlmpeft sweep {path.name}" in path.read_text()


def test_numbers_without_a_dot_are_numbers_and_on_is_a_word(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "base: tiny\ntasks: [format]\nrows: {a: {set: {model.weight_decay: 1e-2}}}\n"
        "search: {learning_rate: [3e-4, 1E-3, .01], on: val}\n"
    )
    spec = read_study_file(path)
    assert spec.search == Search({"learning_rate": (0.0003, 0.001, 0.01)}, on="val")
    assert spec.rows[0].settings == {"model.weight_decay": 0.01}


def test_what_stands_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("base: tiny\ntasks: [format]\nrows:\n  a: {}\n  b: {}\n  a: {}\n")
    with pytest.raises(UserError, match="line 6: 'a' stands there twice"):
        read_study_file(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "loar"}, "reference: there is no row 'loar'. Did you mean lora?"),
        ({"full": "ful"}, "full: there is no row 'ful'"),
        ({"seed": [0]}, "unknown key 'seed'. Did you mean seeds?"),
        ({"rows": {"a": {"tilte": "A"}}}, "rows.a: unknown key 'tilte'. Did you mean title?"),
        ({"seeds": [0, 0]}, "seeds: [0, 0] has an entry twice"),
        ({"seeds": 3}, "seeds: 3 is not a list"),
        ({"seeds": [-1]}, "seeds.0: -1 is less than 0"),
        ({"rows": {}}, "rows: it is empty"),
        ({"base": 7}, "base: 7 is not text or a list or a mapping"),
        ({"rows": {"base": {}}}, "this name is the untouched base's"),
        ({"rows": {"a/b": {}}}, "row 'a/b' names a folder"),
        ({"rows": {"a": {}, "A": {}}}, "rows 'a' and 'A' are one folder"),
        ({"tasks": ["a b"]}, "task 'a b' names a folder"),
        ({"rows": {"a": {"tasks": ["formt"]}}}, "unknown task 'formt'. Did you mean format?"),
        ({"search": {"learning_rate": [0]}}, "search.learning_rate.0: 0 is not above 0"),
        ({"search": {"learning_rates": [1]}}, "Did you mean learning_rate?"),
        ({"search": {"learning_rate": [1], "on": "test"}}, "search.on: 'test' is not one of val"),
        ({"search": {"steps": 3}}, "search: it has nothing to try"),
        ({"match_parameters": 0}, "match_parameters: 0"),
        ({"match_parameters": {"tolerance": 0.1}}, "match_parameters"),
        ({"rows": {"a": {"grid": {"r": [[1], [2]]}}}}, "needs a label"),
        ({"rows": {"a": {"grid": {"r": []}}}}, "rows.a.grid.r"),
        ({"rows": {"a": {"zip": {"r": [1, 2], "s": [1]}}}}, "equally many; here are r 2, s 1"),
        ({"rows": {"a": {"grid": {"r": [1]}, "zip": {"r": [1]}}}}, "is in grid and in zip"),
    ],
)
def test_a_mistake_is_one_line_with_the_key_and_the_next_move(tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        expand_rows(study(tmp_path, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "base: [\n", "rows: {{}: 1}\n", "\x00"])
def test_what_is_no_study_is_refused(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=r"s\.yaml"):
        read_study_file(tmp_path / "s.yaml")


def test_bases_and_tasks_are_names_with_settings(tmp_path):
    spec = study(
        tmp_path,
        base={"nf4": {"path": "tiny", "bits.language": "nf4"}, "whole": "tiny"},
        tasks={
            "mine": {"data": {"train": "t.json"}, "model.metrics": ["ExactMatch"]},
            "format": None,
        },
        match_parameters={"total": 9, "tolerance": 0.1},
    )
    assert spec.bases == {
        "nf4": {"model.base.path": "tiny", "model.base.bits.language": "nf4"},
        "whole": {"model.base.path": "tiny"},
    }
    assert spec.tasks == {
        "mine": {"data.train": "t.json", "model.metrics": ["ExactMatch"]},
        "format": {"data.train": "workbench:format"},
    }
    assert spec.match == Match(9, 0.1)
    assert [*study(tmp_path, base=["a/b-7b", "tiny"]).bases] == ["b-7b", "tiny"]


def test_the_page_names_every_key_and_its_example_is_a_study_without_a_dash(tmp_path):
    page = (ROOT / "docs" / "studies.md").read_text()
    rows = {word for line in page.splitlines() if line[:1] == "|" for word in line.split("`")[1::2]}
    row = STUDY_SCHEMA["properties"]["rows"]["additionalProperties"]["properties"]
    assert {*STUDY_SCHEMA["properties"], *row} <= {
        *rows,
        *(word.partition(":")[0] for word in rows),
    }
    (tmp_path / "s.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    found = resolve_study(read_study_file(tmp_path / "s.yaml"), RunResolver())
    assert [one.cell.illegal for one in found.cells] == [None] * 7


def test_a_study_is_found_by_path_then_here_then_among_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_study("ranks") == find_study("ranks.yaml") == ROOT / "configs/studies/ranks.yaml"
    here = tmp_path / "configs" / "studies" / "ranks.yaml"
    here.parent.mkdir(parents=True)
    here.touch()
    assert find_study("ranks").resolve() == here
    (tmp_path / "ranks.yaml").touch()
    assert find_study("ranks.yaml").resolve() == tmp_path / "ranks.yaml"
    with pytest.raises(UserError, match="Did you mean ranks"):
        find_study("rank.yaml")


def test_a_study_is_no_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        find_config("ranks.yaml")


INFO = StudyInfo("one", "One", (Row("a", "A"),), ("format",), ("tiny",), (0,))


def test_study_json_is_what_was_written_and_another_studys_folder_is_refused(tmp_path):
    write_info(tmp_path / "one", INFO)
    assert read_info(tmp_path / "one") == INFO
    write_info(tmp_path / "one", INFO)
    with pytest.raises(UserError, match="records of study 'one', not of 'two'"):
        check_folder(tmp_path / "one", "two")


def test_records_that_no_study_made_are_left_alone(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"no study made it; give another --out"):
        write_info(tmp_path, INFO)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "file", "one")


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be written"):
        write_info(tmp_path / "file" / "one", INFO)


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        (
            {"rows": {"a": {"grid": {"r": [*range(200)]}, "set": {"trainer.max_steps": "{r}"}}}},
            ["--seeds=0"],
            "600 runs, more than 500; add --yes=true",
        ),
        (
            {"tasks": ["formt"]},
            ["--dry_run"],
            "unknown workbench task 'formt'. Did you mean format?",
        ),
        ({"rows": {"a": {"set": {"trainer.max_stepss": 3}}}}, ["--dry_run"], "Did you mean"),
        ({"rows": {"a": {"set": {"model.plan.language": "LORA"}}}}, ["--dry_run"], "row a on task"),
        ({}, ["--dry_run", "--only", "row=lorra"], "no such row. Did you mean lora?"),
        ({}, ["--dry_run", "--only", "rows=lora"], "give KEY=NAME"),
        ({}, ["--dry_run", "--seeds", "0-3"], "give whole numbers with commas"),
    ],
)
def test_sweep_ends_with_exit_code_2_before_anything_is_run(
    tmp_path, monkeypatch, capsys, changes, args, message
):
    monkeypatch.chdir(tmp_path)
    changes.setdefault("seeds", [0, 1, 2])
    study(tmp_path, **changes)
    assert call("sweep", "s.yaml", *args) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_settings_of_the_command_line_come_last_and_another_base_has_its_own_name(tmp_path):
    from vlmpeft.study.cells import cells_of
    from vlmpeft.study.rows import expand_rows
    from vlmpeft.study.study_file import with_overrides

    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: tiny\ntasks: [format]\nset: {data.batch_size: 4}\nmatch_parameters: {percent: 1}\n"
        "rows: {a: {set: {data.batch_size: 8, model.plan.language: LoRA}}}\n"
    )
    args = ["--data.batch_size", "2", "--model.base.path=models/mine"]
    spec = with_overrides(read_study_file(path), args, 500)
    (cell,) = cells_of(spec, expand_rows(spec))
    assert cell.base == "mine"
    assert list(cell.args[-3:]) == args
    assert spec.match.on(10_000_000).total == 500
    assert read_study_file(path).match.on(1_000).total == 10


@pytest.mark.parametrize(
    ("args", "base", "words"),
    [
        (["--seed_everything=3"], "tiny", "--seeds"),
        (["--model.base.path=x/y"], "{a: tiny, b: tiny}", "2 bases"),
        (["--model.base.path=x/y z"], "tiny", "folder"),
    ],
)
def test_setting_of_the_command_line_that_a_study_cannot_take_is_refused(
    tmp_path, args, base, words
):
    from vlmpeft.study.study_file import with_overrides

    path = tmp_path / "mine.yaml"
    path.write_text(
        f"base: {base}\ntasks: [format]\nrows: {{a: {{set: {{model.plan.language: LoRA}}}}}}\n"
    )
    with pytest.raises(UserError, match=words):
        with_overrides(read_study_file(path), args)


@pytest.mark.parametrize("match", ["{}", "{total: 5, percent: 1}"])
def test_match_needs_one_size(tmp_path, match):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: tiny\ntasks: [format]\nrows: {{a: }}\nmatch_parameters: {match}\n")
    with pytest.raises(UserError, match="total, or percent"):
        read_study_file(path)
