"""Study folders for tests, written by the writers that runs use."""

import csv
from dataclasses import asdict

from vlmpeft.runtime.records import write_items, write_json
from vlmpeft.study.report.info import Row, StudyInfo
from vlmpeft.study.report.records import BASE_ROW


def make_record(row, seed, task="format", base="tiny", *, score, before=0.1, **more):
    """A finished run's record; `more` replaces or adds keys."""
    tuned = {"test": {"exact_match": score, "loss": 2 - score}}
    untouched = {"test": {"exact_match": before, "loss": 2 - before}}
    return {
        "schema": 1,
        "status": "done",
        "study": "s",
        "row": row,
        "task": task,
        "base_name": base,
        "seed": seed,
        "base": {"id": base, "fingerprint": "abc"},
        "data": {"train": {"sha256": "0", "conversations": 800}},
        "metrics": {"base": untouched, "tuned": tuned},
        "primary": "exact_match",
        "trainable": 1000,
        "total": 100_000,
        "components": {},
        "steps": 100,
        "seconds": {"load": 1.0, "fit": 60.0, "score": 3.0},
        "peak_memory_bytes": 10**8,
        "adapter_bytes": 4000,
        "config": {"model": {"plan": {}}},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "device": "cpu, 2 threads",
        "git": {"commit": "0" * 40, "dirty": False},
    } | more


def failed_record(row, seed, error, task="format", base="tiny"):
    """A failed run's record."""
    keys = {"study": "s", "row": row, "task": task, "base_name": base, "seed": seed}
    return {"schema": 1, "status": "failed", "error": error, **keys, "config": {}}


def write_study(folder, rows, records, **info):
    """Write study.json and the run folders of records; returns the folder.

    Args:
        folder: of the study.
        rows: Row values, or names.
        records: of make_record and failed_record.
        info: further fields of StudyInfo.
    """
    rows = tuple(row if isinstance(row, Row) else Row(row, row) for row in rows)
    lists = {
        "tasks": tuple(dict.fromkeys(r["task"] for r in records)),
        "bases": tuple(dict.fromkeys(r["base_name"] for r in records)),
        "seeds": tuple(sorted({r["seed"] for r in records if r["seed"] is not None})),
    }
    study = StudyInfo(**{"name": "s", "title": "S", "rows": rows, **lists, **info})
    write_json(folder / "study.json", asdict(study) | {"schema": 1})
    for record in records:
        write_json(run_folder(folder, record) / "result.json", record)
    return folder


def run_folder(folder, record):
    """Where a record's run is."""
    task = folder / "runs" / record["base_name"] / record["task"]
    if record["row"] == BASE_ROW:
        return task / BASE_ROW
    return task / record["row"] / f"seed{record['seed']}"


def write_losses(folder, losses):
    """`metrics.csv` of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "name", "value"])
        for step, loss in enumerate(losses):
            writer.writerows([[step, "train/loss", repr(float(loss))], [step, "epoch", "0.0"]])


def make_item(number, score, **more):
    """An item's record; `more` replaces or adds keys."""
    return {
        "id": f"item-{number}",
        "fields": {"kind": "part"},
        "image": [f"images/test-{number}.png"],
        "prompt": "what is this?",
        "expected": "gear",
        "generated": "gear" if score == 1 else "bolt",
        "finish_reason": "stop",
        "token_log_probabilities": [-0.1],
        "loss": 2.0 - score,
        "tokens": 1,
        "scores": {"exact_match": float(score)},
    } | more


def write_run_items(folder, record, items):
    """`items.jsonl.gz` of a record's run."""
    write_items(run_folder(folder, record) / "items.jsonl.gz", items)
