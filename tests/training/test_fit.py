"""One run from start to end on the embedded base, and its continuation after kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from vlmpeft.runtime.records import read_items, read_record
from vlmpeft.training.checkpoints import RunCheckpoints

from ..conftest import ROOT, call, llava, write_json

import lightning.pytorch as pl  # isort: skip  after torchvision's operators

RECIPE = [
    "--model.plan.projector=Full",
    "--model.plan.projector.init_args.learning_rate=1e-3",
    "--model.plan.language=LoRA",
    "--model.plan.language.init_args.r=4",
    "--model.plan.language.init_args.dropout=0.2",
    "--data.batch_size=4",
]


# a strategy with a state of its own beside its tensors
ADALORA = [
    "--model.plan.language=AdaLoRA",
    "--model.plan.language.init_args.init_r=4",
    "--model.plan.language.init_args.target_r=2",
    "--model.plan.language.init_args.dropout=0.2",
    "--data.batch_size=4",
]


@pytest.fixture(scope="module")
def task(tmp_path_factory, pictures):
    """A folder with train.json (22 conversations, one multi-turn, one text-only) and val.json."""
    folder = tmp_path_factory.mktemp("task")
    records = [
        llava(f"question {i}?", f"answer {i % 3}", "abc"[i % 3] + ".png", id=f"t{i}")
        for i in range(20)
    ]
    talk = llava("one?", "1")
    talk["conversations"] += [{"from": "human", "value": "two?"}, {"from": "gpt", "value": "2"}]
    write_json(folder / "train.json", [*records, talk, llava("hi", "nut", image=None)])
    write_json(
        folder / "val.json",
        [llava(f"question {i}?", "answer 1", id=f"v{i}", kind="k") for i in range(5)],
    )
    return folder


def arguments(task, pictures, *extra, recipe=RECIPE):
    data = [f"--data.train={task / 'train.json'}", f"--data.val={task / 'val.json'}"]
    return ["fit", *data, f"--data.image_dir={pictures}", *recipe, *extra]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, task, pictures):
    """A finished run's folder."""
    runs = tmp_path_factory.mktemp("runs")
    assert call(*arguments(task, pictures, f"--runs_dir={runs}", "--run_name=one")) == 0
    return runs / "one"


def rows(run):
    """(step, name) -> value of the run's log."""
    lines = (run / "metrics.csv").read_text().splitlines()[1:]
    return {tuple(line.split(",")[:2]): line.split(",")[2] for line in lines}


def test_run_folder_holds_what_the_contract_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml",
        "metrics.csv",
        "result.json",
        "items.jsonl.gz",
        "predictions.jsonl",
        "adapter",
        "checkpoints",
    }
    adapter = {path.name for path in (finished / "adapter").iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "README.md",
    } <= adapter


def test_record_holds_what_the_contract_says(finished):
    record = read_record(finished)
    assert record["status"] == "done"
    assert record["metrics"]["base"].keys() == record["metrics"]["tuned"].keys() == {"val"}
    assert record["metrics"]["base"]["val"].keys() == {"exact_match", "token_f1", "loss"}
    assert record["primary"] == "exact_match"
    assert record["selected"] == {"by": "last", "step": 18}
    assert record["steps"] == 3 * 6
    assert record["trainable"] == record["reachable"]
    assert record["data"]["train"]["conversations"] == 22
    assert record["base"]["bits"]["language"] == "nf4"
    assert record["metrics"]["tuned"]["val"]["loss"] < record["metrics"]["base"]["val"]["loss"]
    contract = "schema study row task seed search total components supervised_tokens seconds config versions"
    contract += " peak_memory_bytes adapter_bytes config_hash device git"
    assert set(contract.split()) <= record.keys()


def test_supervised_tokens_are_three_epochs_of_answers(finished, task):
    from vlmpeft.base.loading import load_processor
    from vlmpeft.base.spec import BaseSpec

    tokenizer = load_processor(BaseSpec()).tokenizer
    answers = [
        turn["value"]
        for record in json.loads((task / "train.json").read_text())
        for turn in record["conversations"]
        if turn["from"] == "gpt"
    ]
    tokens = sum(len(tokenizer(answer).input_ids) + 1 for answer in answers)
    assert read_record(finished)["supervised_tokens"] == 3 * tokens


def test_items_recompute_the_scores(finished):
    items = read_items(finished / "items.jsonl.gz")
    scores = read_record(finished)["metrics"]["tuned"]["val"]
    assert [item["id"] for item in items] == [f"v{i}" for i in range(5)]
    for name in ("exact_match", "token_f1"):
        assert sum(item["scores"][name] for item in items) / 5 == pytest.approx(
            scores[name], abs=1e-12
        )
    assert {"prompt", "expected", "generated", "finish_reason", "image"} <= items[0].keys()
    assert items[0]["fields"] == {"kind": "k"}
    assert all(len(item["token_log_probabilities"]) > 0 for item in items)


def test_checkpoint_holds_trainables_only(finished):
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    adapter = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert sum(t.numel() for t in checkpoint["state_dict"].values()) == sum(
        t.numel() for t in adapter.values()
    )


def test_validate_reproduces_the_score_to_the_last_digit(finished, capsys):
    assert call("validate", "--adapter", finished / "adapter") == 0
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    scores = read_record(finished)["metrics"]["tuned"]["val"]
    assert {name.removeprefix("val/"): value for name, value in printed.items()} == scores


def test_predict_writes_the_same_answers(finished, tmp_path):
    assert call("predict", "--adapter", finished / "adapter", "--out", tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["generated"] for line in lines] == [
        item["generated"] for item in read_items(finished / "items.jsonl.gz")
    ]


def test_a_finished_run_is_not_fitted_again(finished, capsys):
    assert call("fit", "--resume", finished) == 2
    assert "is finished" in capsys.readouterr().err


def test_init_adapter_starts_where_the_other_run_ended(finished, tmp_path, task, pictures):
    """With learning rates of zero the new run's adapter is the old one, bit for bit."""
    rates = [
        f"--model.plan.{name}.init_args.learning_rate=0.0" for name in ("projector", "language")
    ]
    extra = [
        f"--runs_dir={tmp_path}",
        "--run_name=two",
        f"--init_adapter={finished / 'adapter'}",
        *rates,
    ]
    assert call(*arguments(task, pictures, *extra, "--trainer.max_epochs=1")) == 0
    old, new = (
        load_file(run / "adapter/adapter_model.safetensors") for run in (finished, tmp_path / "two")
    )
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_init_adapter_that_does_not_fit_is_refused(finished, tmp_path, task, pictures, capsys):
    extra = [f"--runs_dir={tmp_path}", f"--init_adapter={finished / 'adapter'}"]
    assert call(*arguments(task, pictures, *extra, "--model.plan.language.init_args.r=8")) == 2
    assert "has shape" in capsys.readouterr().err


def test_an_adapter_of_another_base_is_refused(finished, tmp_path, capsys):
    from vlmpeft.base.loading import load_base
    from vlmpeft.base.spec import BaseSpec, Bits

    model, processor, _ = load_base(BaseSpec(bits=Bits(language="fp32")))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    assert (
        call(
            "validate", "--adapter", finished / "adapter", f"--model.base.path={tmp_path / 'other'}"
        )
        == 2
    )
    assert "belongs to base tiny" in capsys.readouterr().err


def test_best_is_scored_when_asked_for(tmp_path, task, pictures):
    extra = [f"--runs_dir={tmp_path}", "--run_name=best", "--eval.select=best", "--eval.every=4"]
    assert call(*arguments(task, pictures, *extra, "--trainer.max_epochs=2")) == 0
    record = read_record(tmp_path / "best")
    values = {
        int(s): float(v) for (s, n), v in rows(tmp_path / "best").items() if n == "val/exact_match"
    }
    assert len(values) == 3
    assert record["selected"]["by"] == "val/exact_match"
    assert record["metrics"]["tuned"]["val"]["exact_match"] == max(values.values())


class Scores(pl.LightningModule):
    """Has nothing to learn and a given score at each validation."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.weight = iter(scores), torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch.sum()).sum()

    def validation_step(self, batch, batch_idx):
        self.log("score", next(self.scores))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run_with_scores(checkpoints, scores):
    """One step and one validation for each score."""
    one = torch.utils.data.DataLoader(torch.ones(1))
    pl.Trainer(
        accelerator="cpu",
        max_epochs=len(scores),
        callbacks=[checkpoints],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    ).fit(Scores(scores), one, one)


@pytest.mark.filterwarnings("ignore")  # Lightning's of a loader without workers
def test_the_first_of_equal_scores_is_the_best_and_a_resumed_run_knows_it(tmp_path):
    first = RunCheckpoints(tmp_path, every=100, select="best", monitor="score")
    run_with_scores(first, [0.25, 0.5, 0.5, 0.375])
    assert (first.best_value, first.best_step) == (0.5, 2)
    resumed = RunCheckpoints(tmp_path, every=100, select="best", monitor="score")
    resumed.load_state_dict(first.state_dict())
    run_with_scores(resumed, [0.4375])
    assert (resumed.best_value, resumed.best_step) == (0.5, 2)
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert saved["global_step"] == 2


def test_accumulated_steps_equal_one_big_batch(tmp_path, task, pictures):
    """Batches of unequal numbers of supervised tokens, exact normaliser: same weights either way."""
    adapters = {}
    for name, batch, accumulate in (("big", 22, 1), ("small", 4, 6)):
        extra = [f"--runs_dir={tmp_path}", f"--run_name={name}", f"--data.batch_size={batch}"]
        extra += [
            f"--trainer.accumulate_grad_batches={accumulate}",
            "--model.base.bits.language=fp32",
        ]
        extra += ["--model.plan.language.init_args.dropout=0.0", "--model.warmup_ratio=0.0"]
        assert call(*arguments(task, pictures, *extra)) == 0
        assert read_record(tmp_path / name)["steps"] == 3
        adapters[name] = load_file(tmp_path / name / "adapter/adapter_model.safetensors")
    big, small = adapters["big"], adapters["small"]
    # root mean square: where a gradient is almost zero, Adam makes a step out of the last bits of a sum
    apart = {name: (big[name] - small[name]).square().mean().sqrt() for name in big}
    assert max(apart.values()) < 2e-6, max(apart, key=lambda name: apart[name])


@pytest.mark.parametrize(
    ("recipe", "accumulate"),
    [
        pytest.param(RECIPE, 1, id="lora", marks=pytest.mark.slow),
        pytest.param(ADALORA, 2, id="adalora, accumulated"),
    ],
)
def test_after_kill_9_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path, task, pictures, recipe, accumulate
):
    extra = [f"--runs_dir={tmp_path}", "--checkpoint_every=3", "--trainer.max_epochs=8"]
    extra += [f"--trainer.accumulate_grad_batches={accumulate}"]
    assert call(*arguments(task, pictures, *extra, "--run_name=whole", recipe=recipe)) == 0
    killed = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "vlmpeft",
        *arguments(task, pictures, *extra, "--run_name=killed", recipe=recipe),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_step(killed / "metrics.csv", 14, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert read_record(killed) is None
    checkpoint = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)
    at, spent = checkpoint["global_step"], checkpoint["progress"]["fit_seconds"]
    assert 3 <= at < 48 // accumulate
    assert call("fit", "--resume", killed) == 0
    assert rows(killed) == rows(tmp_path / "whole")
    one, two = (
        load_file(next((tmp_path / n / "adapter").glob("adapter*.safetensors")))
        for n in ("whole", "killed")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    records = [read_record(tmp_path / name) for name in ("whole", "killed")]
    assert records[1]["seconds"]["fit"] > spent > 0
    for key in ("metrics", "steps", "config_hash", "selected", "reachable", "supervised_tokens"):
        assert records[0][key] == records[1][key], key


def wait_for_step(log, step, process, seconds=120):
    """Wait until the run has logged a step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and log.read_text().count("train/loss") > step:
            return
        time.sleep(0.002)
    pytest.fail(f"the run ended with {process.poll()} before step {step}")
