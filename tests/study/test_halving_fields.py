"""Successive halving of a study on disk: rungs are what the records say, whoever made them; time ends it."""

import time

import pytest

from vlmpeft.runtime.errors import Interrupted
from vlmpeft.runtime.records import read_json_or_none, write_json
from vlmpeft.study.cells import Cell
from vlmpeft.study.deadline import Deadline
from vlmpeft.study.halving_fields import begun_runs, fields_of, head, missing_runs
from vlmpeft.study.halving_file import agreed_steps, found_of, write_agreed, write_found
from vlmpeft.study.planned_run import Candidate
from vlmpeft.study.records_on_disk import Accept, RecordsOnDisk
from vlmpeft.study.resolving import ResolvedCell
from vlmpeft.study.spec import Search
from vlmpeft.study.stopping import Stop

ROWS, RATES = ("a", "b", "c"), (0.1, 0.2)
SEARCH = Search({"learning_rate": RATES}, seeds=(0, 1))
# (row, rate) -> score on each task; their order is not that of the names
SCORES = {("a", 0.1): 3, ("a", 0.2): 9, ("b", 0.1): 5, ("b", 0.2): 1, ("c", 0.1): 7, ("c", 0.2): 2}


def fields():
    def one(row, task):
        tries = tuple(Candidate(f"learning_rate={r}", {"learning_rate": r}) for r in RATES)
        return ResolvedCell(Cell(row, task, "tiny", ()), candidates=tries)

    return fields_of([one(row, task) for task in ("t", "u") for row in ROWS], SEARCH)


@pytest.fixture
def records(tmp_path):
    return RecordsOnDisk(tmp_path, None, Accept(), time.time() - 1, lambda _: None)


def score_of(run):
    score = SCORES[run.cell.row, run.candidate.settings["learning_rate"]]
    return score if run.cell.task == "t" else -score


def make(folder, run, status="done"):
    """The record of a run; of its two seeds one is better and one worse than the arm."""
    score = score_of(run) + (0.5 if run.seed else -0.5)
    tuned = {"val": {"exact_match": score, "loss": 1.0}}
    write_json(
        folder / run.name / "result.json",
        {"status": status, "primary": "exact_match", "metrics": {"tuned": tuned}},
    )


def test_rungs_on_disk_are_those_of_sorting_each_task_by_itself(tmp_path, records):
    found, made = fields(), []
    while runs := missing_runs(found, 4, records):
        made.append({(run.cell.task, run.cell.row, run.candidate.label, run.seed) for run in runs})
        for run in runs:
            make(tmp_path, run)
    best_first = sorted(SCORES, key=SCORES.get, reverse=True)
    expected = [
        {
            (task, row, f"halving={steps}+learning_rate={rate}", seed)
            for task, order in (("t", best_first), ("u", best_first[::-1]))
            for row, rate in order[:arms]
            for seed in (0, 1)
        }
        for steps, arms in ((4, 6), (8, 3), (16, 2))
    ]
    assert made == expected
    ranked = found_of(found, [field.rungs(4, records) for field in found])[0]["ranking"]
    assert [(arm["row"], arm["settings"]["learning_rate"]) for arm in ranked] == best_first
    assert [arm["steps"] for arm in ranked] == [16, 16, 8, 4, 4, 4]
    assert ranked[0]["score"] == SCORES[best_first[0]]


def test_runs_are_short_ones_of_the_search_and_score_validation_alone(records):
    runs = list(begun_runs(fields(), 4, records))
    assert len(runs) == 2 * 6 * 2
    assert all(run.name.startswith("search/tiny/") for run in runs)
    assert all("--trainer.max_steps=4" in run.args for run in runs)
    assert all("--eval.splits=[val]" in run.args for run in runs)


def test_run_that_failed_before_is_made_again_and_one_that_failed_now_drops_its_arm(
    tmp_path, records
):
    found = fields()
    first = missing_runs(found, 4, records)
    for run in first:
        make(tmp_path, run, "failed" if run.cell.row == "a" and run.cell.task == "t" else "done")
    assert {run.cell.row for run in missing_runs(found, 4, records) if run.cell.task == "t"} == {
        "b",
        "c",
    }
    later = RecordsOnDisk(tmp_path, None, Accept(), time.time() + 1, lambda _: None)
    assert {run.cell.row for run in missing_runs(found, 4, later)} >= {"a"}


def test_agreement_holds_for_the_same_arms_and_budget_alone(tmp_path):
    both = fields()
    write_agreed(tmp_path, "s", head(both, 60.0), 7)
    assert agreed_steps(tmp_path, head(both, 60.0)) == 7
    assert agreed_steps(tmp_path, head(both, 61.0)) is None
    assert agreed_steps(tmp_path, head(both[:1], 60.0)) is None
    (tmp_path / "halving.json").write_text("[")
    assert agreed_steps(tmp_path, head(both, 60.0)) is None


def test_files_say_that_this_is_no_table_of_results_and_which_rung_was_not_over(tmp_path, records):
    found = fields()
    for run in missing_runs(found, 4, records):
        make(tmp_path, run)
    write_agreed(tmp_path, "s", head(found, 60.0), 4)
    content = found_of(found, [field.rungs(4, records) for field in found])
    write_found(tmp_path, "s", content, "exact_match")
    read = read_json_or_none(tmp_path / "halving.json")
    assert (read["status"], read["on"]) == ("budget spent", "val")
    assert agreed_steps(tmp_path, head(found, 60.0)) == 4
    text = (tmp_path / "halving.md").read_text()
    assert "no table of results" in text
    assert "spent before its last rung was over" in text
    assert "| 1 | a | learning_rate=0.2 | 1 of 3 | 4 | 9.0000 | 1.0000 |" in text


def test_deadline_ends_what_goes_on_and_a_signal_is_not_taken_for_it():
    stop = Stop()
    began = time.monotonic()
    with Deadline(0.05, stop).kept():
        time.sleep(5)
    assert time.monotonic() - began < 1
    with Deadline(5.0, Stop()).kept():
        assert True
    with pytest.raises(Interrupted), Deadline(5.0, Stop()).kept():
        stop.request()
