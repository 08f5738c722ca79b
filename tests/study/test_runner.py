"""Runs of a study in one process: each is what `fit` alone would leave; what is finished stays."""

import json
from dataclasses import replace

import pytest

from vlmpeft.cli.study_runs import RunOpener
from vlmpeft.runtime.errors import Interrupted, UserError
from vlmpeft.runtime.records import read_items, read_record
from vlmpeft.study.cells import Cell
from vlmpeft.study.planned_run import Candidate
from vlmpeft.study.records_on_disk import Accept
from vlmpeft.study.report.records import read_study
from vlmpeft.study.resolving import ResolvedCell
from vlmpeft.study.runner import Runner
from vlmpeft.study.spec import Search
from vlmpeft.study.stopping import Stop
from vlmpeft.study.worker import Worker

from ..conftest import call, llava, write_json

# every strategy family: something in place, something wrapped, something random, something in the tower
ROWS = {
    "language_LoRA": ["language=LoRA", "language.init_args.r=4", "language.init_args.dropout=0.2"],
    "projector_Full": ["projector=Full"],
    "vision_LoRA": ["vision=LoRA"],
    "language_PromptTuning": ["language=PromptTuning"],
    "both_DoRA": ["language=DoRA", "projector=DoRA"],
}


class Quiet:
    """A view that keeps what it is told."""

    def __init__(self):
        self.notes = []

    def started(self, run): ...

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def task(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("task")
    train = [
        llava(f"question {i}?", f"answer {i % 3}", "abc"[i % 3] + ".png", id=f"t{i}")
        for i in range(20)
    ]
    write_json(folder / "train.json", [*train, llava("hi", "nut", image=None, id="text")])
    write_json(
        folder / "val.json", [llava(f"question {i}?", "answer 1", id=f"v{i}") for i in range(5)]
    )
    return (
        f"--data.train={folder / 'train.json'}",
        f"--data.val={folder / 'val.json'}",
        f"--data.image_dir={pictures}",
        "--data.batch_size=4",
        "--model.base.bits.language=fp32",
        "--trainer.max_epochs=2",
    )


def cell(task, row, *more, seeds=(0,), plan=None):
    plan = [f"--model.plan.{setting}" for setting in plan or ROWS[row]]
    return Cell(row, "mine", "tiny", (*task, *plan, *more), seeds)


def run(folder, cells, *, worker=None, accept=None, view=None, callbacks=()):
    worker = worker or Worker(RunOpener(callbacks))
    cells = [ResolvedCell(one) for one in cells]
    return Runner("s", folder, cells, worker, None, accept or Accept(), view or Quiet()).run()


@pytest.fixture(scope="module")
def study(tmp_path_factory, task):
    """A study's folder after all rows, made one after another on one base."""
    folder = tmp_path_factory.mktemp("study")
    outcome = run(folder, [cell(task, row) for row in ROWS])
    assert outcome.failed == []
    return folder


def losses(folder):
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return [float(value) for _, name, value in rows if name == "train/loss"]


@pytest.mark.parametrize("row", ROWS)
def test_each_row_equals_the_same_row_run_alone(study, tmp_path, task, row):
    alone = cell(task, row)
    assert call("fit", *alone.args, f"--runs_dir={tmp_path}", "--run_name=alone") == 0
    together = study / "runs/tiny/mine" / row / "seed0"
    assert len(losses(together)) == 2 * 6
    assert losses(together) == pytest.approx(losses(tmp_path / "alone"), rel=0, abs=1e-6)
    ours, its = read_record(together), read_record(tmp_path / "alone")
    assert ours["config_hash"] == its["config_hash"]
    assert ours["metrics"]["tuned"]["val"] == pytest.approx(
        its["metrics"]["tuned"]["val"], abs=1e-5
    )
    assert ours["trainable"] == its["trainable"]


def test_records_say_whose_they_are(study):
    read = read_study(study)
    assert {r.row for r in read.runs} == {*ROWS, "base"}
    assert all(
        r.record["study"] == "s" and r.task == "mine" and r.base == "tiny" for r in read.runs
    )


def test_a_record_claims_no_search_that_the_study_did_not_make(tmp_path, task):
    one = cell(task, "projector_Full", "--search.tried=7", "--trainer.max_epochs=1")
    run(tmp_path, [one])
    (found,) = [r for r in read_study(tmp_path).runs if r.row == one.row]
    assert found.record["search"] is None


def test_base_is_a_row_with_the_scores_of_the_untouched_base(study):
    (base,) = read_study(study).of("base")
    (row,) = read_study(study).of("language_LoRA")
    assert base.score() == row.score(state="base")
    items = read_items(base.folder / "items.jsonl.gz")
    assert sum(item["loss"] * item["tokens"] for item in items) / sum(
        item["tokens"] for item in items
    ) == pytest.approx(row.score("loss", state="base"), rel=1e-5)


def test_singular_values_are_those_of_the_saved_adapter(study):
    import torch

    from vlmpeft.adapters.adapter import Adapter

    folder = study / "runs/tiny/mine/language_LoRA/seed0"
    spectrum = json.loads((folder / "spectrum.json").read_text())
    tensors = Adapter.read(folder / "adapter").tensors
    name = next(name for name in spectrum if "q_proj" in name)
    stem = name.removesuffix(".weight")
    a = next(v for k, v in tensors.items() if stem in k and "lora_A" in k)
    b = next(v for k, v in tensors.items() if stem in k and "lora_B" in k)
    expected = torch.linalg.svdvals(2 * (b @ a))[:4]  # alpha / r is 2 by default
    assert spectrum[name] == pytest.approx(expected.tolist(), rel=1e-3)


def test_finished_runs_are_not_made_again_and_missing_ones_are(study, task):
    before = {p: p.stat().st_mtime_ns for p in study.rglob("result.json")}
    outcome = run(study, [cell(task, "projector_Full", seeds=(0, 7))])
    assert outcome.reused == ["runs/tiny/mine/projector_Full/seed0"]
    assert outcome.made == ["runs/tiny/mine/projector_Full/seed7"]
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())


def test_record_of_other_settings_is_refused_by_key_and_can_be_accepted_or_redone(study, task):
    changed = [cell(task, "projector_Full", "--model.plan.projector.init_args.learning_rate=5e-4")]
    path = study / "runs/tiny/mine/projector_Full/seed0/result.json"
    with pytest.raises(
        UserError, match=r"plan\.projector\.0\.init_args\.learning_rate: .* -> 0\.0005"
    ):
        run(study, changed)
    with pytest.raises(UserError, match="--redo"):
        run(study, changed, accept=Accept(keys=("plan.language",)))
    assert run(study, changed, accept=Accept(keys=("plan.projector",))).made == []
    assert "plan.projector.0.init_args.learning_rate" in json.loads(path.read_text())["accepted"]
    assert run(study, changed, accept=Accept(redo=True)).made == [
        "runs/tiny/mine/projector_Full/seed0"
    ]
    assert "accepted" not in json.loads(path.read_text())


def test_damaged_record_is_named_set_aside_and_made_again(tmp_path, task):
    cells, view = [cell(task, "projector_Full", "--trainer.max_epochs=1")], Quiet()
    run(tmp_path, cells)
    path = tmp_path / "runs/tiny/mine/projector_Full/seed0/result.json"
    path.write_text(path.read_text()[:-200])
    assert len(run(tmp_path, cells, view=view).made) == 1
    assert str(path) in view.notes[0]
    assert path.with_name("result.json.damaged").is_file()
    assert read_record(path.parent)["status"] == "done"


def test_a_cell_of_which_every_try_fails_is_a_failed_run_and_not_left_out(tmp_path, task):
    bad = cell(task, "bad", plan=["language=BitFit"], seeds=(0, 1))
    tries = tuple(Candidate(f"lr={i}", {"lr": i}, (f"--trainer.max_steps={i}",)) for i in (1, 2))
    cells, worker = [ResolvedCell(bad, candidates=tries)], Worker(RunOpener())
    search = Search({"lr": (1, 2)})
    found = Runner("s", tmp_path, cells, worker, search, Accept(), Quiet()).run()
    assert len(found.failed) == 4
    failed = {r.seed: r.record for r in read_study(tmp_path).failed}
    assert {*failed} == {0, 1}
    assert "every try of its search failed" in failed[0]["error"]


def test_failed_row_is_a_record_and_the_study_goes_on(tmp_path, task):
    bad = cell(task, "bad", plan=["language=BitFit"])
    good = cell(task, "projector_Full", "--trainer.max_epochs=1")
    outcome = run(tmp_path, [bad, good])
    assert (len(outcome.failed), len(outcome.made)) == (1, 1)
    (failed,) = read_study(tmp_path).failed
    assert (failed.row, failed.seed) == ("bad", 0)
    assert "bias" in failed.record["error"]
    assert len(run(tmp_path, [bad]).failed) == 1  # another call tries it again


class StopsAt(Stop):
    """A stop that is asked for after a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, trainer, *args, **kwargs):
        if trainer.global_step == self.step:
            self.request()
        super().on_train_batch_end(trainer, *args, **kwargs)


def test_stopped_run_goes_on_and_equals_the_uninterrupted_one(study, tmp_path, task):
    cells = [cell(task, "language_LoRA")]
    with pytest.raises(Interrupted):
        run(tmp_path, cells, callbacks=[StopsAt(5)])
    folder = tmp_path / "runs/tiny/mine/language_LoRA/seed0"
    assert not (folder / "result.json").exists()
    run(tmp_path, cells)
    assert losses(folder) == losses(study / "runs/tiny/mine/language_LoRA/seed0")


def test_checkpoint_of_other_settings_is_not_resumed(tmp_path, task):
    with pytest.raises(Interrupted):
        run(tmp_path, [cell(task, "language_LoRA")], callbacks=[StopsAt(5)])
    other = replace(
        cell(task, "language_LoRA"),
        args=(*task, "--model.plan.language=LoRA", "--model.plan.language.init_args.r=2"),
    )
    run(tmp_path, [other])
    assert len(losses(tmp_path / "runs/tiny/mine/language_LoRA/seed0")) == 12
