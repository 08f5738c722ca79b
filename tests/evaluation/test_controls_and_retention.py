"""What is scored beside the answers themselves: other pictures, text alone, groups, how settings were found."""

import json

import pytest

from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.workbench.build import build_task
from vlmpeft.runtime.records import read_record

from ..conftest import call, llava, write_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 200 conversations of the source task with everything switched on; (record, folder)."""
    folder = tmp_path_factory.mktemp("extras")
    build_task("source", folder / "task")
    for split, number in (("train", 60), ("val", 40)):
        records = json.loads((folder / "task" / f"{split}.json").read_text())
        shown = [r for r in records if "image" in r and r["kind"] != "describe"][:number]
        (folder / "task" / f"{split}.json").write_text(json.dumps(shown))
    tests = json.loads((folder / "task" / "test.json").read_text())
    described = [record for record in tests if record["kind"] == "describe"][:10]
    kept = write_json(folder / "task" / "kept.json", [*described, llava("x", "y", None)])
    arguments = [
        f"--data.train={folder / 'task' / 'train.json'}",
        f"--data.val={folder / 'task' / 'val.json'}",
        f"--data.retention={kept}",
        "--data.group_by=kind",
        "--data.choices=['yes', 'no']",
        "--eval.controls=[blank, shuffled]",
        "--search.tried=5",
        "--model.metrics=[ExactMatch, {class_path: ChoiceAccuracy, groups: [yes_no]}]",
        "--model.plan.language=LoRA",
        "--model.plan.language.init_args.learning_rate=1e-5",
        "--model.base.bits.language=fp32",
        "--trainer.max_epochs=1",
        f"--runs_dir={folder}",
        "--run_name=run",
    ]
    assert call("fit", *arguments) == 0
    return read_record(folder / "run"), folder / "run"


def test_a_model_that_looks_at_pictures_does_worse_on_other_ones(run):
    record, _ = run
    right = record["metrics"]["tuned"]["val"]["exact_match"]
    assert right > 0.8
    assert record["controls"]["blank"]["exact_match"] < right - 0.3
    assert record["controls"]["shuffled"]["exact_match"] < right - 0.2


def test_retention_is_scored_before_and_after(run):
    record, _ = run
    assert (
        record["metrics"]["base"]["retention"].keys()
        == record["metrics"]["tuned"]["retention"].keys()
    )
    assert record["data"]["retention"]["conversations"] == 11


def test_long_answers_of_retention_are_not_cut_off_where_training_answers_are_short(run):
    """The base describes pictures rightly; what is trained on takes fewer tokens than a description."""
    record, _ = run
    assert record["metrics"]["base"]["retention"]["exact_match"] == pytest.approx(10 / 11)
    assert record["decoding"]["max_new_tokens"] < 20


def test_groups_are_in_the_record_before_and_after(run):
    record, _ = run
    base, tuned = (record["groups"][state]["val"] for state in ("base", "tuned"))
    assert base.keys() == tuned.keys()
    assert len(tuned) > 3
    assert sum(group["items"] for group in tuned.values()) == 40


def test_choices_given_for_all_are_scored_by_likelihood(run):
    record, _ = run
    scores = record["groups"]["tuned"]["val"]["yes_no"]
    assert scores["choice_accuracy"] >= scores["exact_match"] > 0.5


def test_the_search_that_led_here_is_recorded(run):
    record, _ = run
    assert record["search"] == {"tried": 5, "on": "val"}


def test_retention_of_a_workbench_task_is_its_test_split():
    data = VLMData(train="workbench:stock,n=1", retention="workbench:paints,n=1")
    kept = data.reader.read("retention").conversations
    assert {c.id.rsplit("-", 1)[0] for c in kept} == {"paints-test"}


def test_an_unknown_group_field_gets_a_suggestion(tmp_path, pictures, capsys):
    path = write_json(tmp_path / "r.json", [llava(kind="x")])
    arguments = [f"--data.val={path}", f"--data.image_dir={pictures}", "--data.group_by=knd"]
    assert call("fit", f"--data.train={path}", *arguments, f"--runs_dir={tmp_path}") == 2
    assert "Did you mean kind" in capsys.readouterr().err


def test_a_metric_for_groups_that_are_not_there_is_refused(tmp_path, pictures, capsys):
    path = write_json(tmp_path / "r.json", [llava(kind="x")])
    arguments = [f"--data.val={path}", f"--data.image_dir={pictures}", "--data.group_by=kind"]
    metric = "--model.metrics=[ExactMatch, {class_path: TokenF1, groups: [y]}]"
    assert call("fit", f"--data.train={path}", *arguments, metric, f"--runs_dir={tmp_path}") == 2
    assert (
        "token_f1 is for groups y, but by data.group_by=kind there are x" in capsys.readouterr().err
    )
