"""What makes `format`, `style` and `gauge` tasks worth adapting a base for; minutes each, on one core.

It leaves the records of the table in docs/data.md. The settings are full fine-tuning's, in fp32: rates of vision, projector and language, epochs of 16 a step.
"""

import json

import pytest

from vlmpeft.data.batches.dataset import scored_items
from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.language_prior import language_prior
from vlmpeft.runtime.records import read_record

from ..conftest import ROOT, call

SETTINGS = {
    "format": ("workbench:format", (2e-5, 3e-4, 1e-3), 12),  # 1,200 steps
    "style": ("workbench:style,n=4800", (1e-3, 1e-3, 5e-5), 3),  # 900 steps
    "gauge": ("workbench:gauge", (1e-3, 1e-3, 1e-3), 8),  # 800 steps
}


def _full(rates):
    """Options that train every parameter, each component at its own rate."""
    for component, rate in zip(("vision", "projector", "language"), rates, strict=True):
        yield f"--model.plan.{component}=Full"
        yield f"--model.plan.{component}.init_args.learning_rate={rate}"


def _prior(train):
    data = VLMData(train=train)
    learnt, scored = (
        scored_items(data.reader.read(split).conversations) for split in ("train", "test")
    )
    return language_prior(learnt, scored)


def _keep(task, record, prior):
    """Write what the table of docs/data.md is made of."""
    names = ("metrics", "controls", "data", "steps", "trainable", "seconds", "seed")
    kept = {name: record[name] for name in (*names, "decoding", "device", "versions", "git")}
    path = ROOT / "results" / "workbench" / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"task": record["task"], "language_prior": prior} | kept, indent=1)
    path.write_text(text + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("task", SETTINGS)
def test_a_task_is_not_known_can_be_learnt_and_has_to_be_seen(task, tmp_path):
    train, rates, epochs = SETTINGS[task]
    arguments = [
        f"--data.train={train}",
        "--data.retention=workbench:source_pictures",
        "--model.base.bits.language=fp32",
        *_full(rates),
        "--eval.controls=[blank]",
        f"--trainer.max_epochs={epochs}",
        f"--runs_dir={tmp_path}",
        "--run_name=run",
    ]
    assert call("fit", *arguments) == 0
    record, prior = read_record(tmp_path / "run"), _prior(train)
    _keep(task, record, prior)
    base, tuned = (record["metrics"][state]["test"]["exact_match"] for state in ("base", "tuned"))
    source = record["metrics"]["base"]["retention"]["exact_match"]
    blank = record["controls"]["blank"]["exact_match"]
    assert (base - prior) / (1 - prior) < 0.3
    assert tuned >= 0.95 * source
    assert prior - 0.15 < blank < prior + 0.05
