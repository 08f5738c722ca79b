"""Runs with scores that a test chooses, on disk as `fit` leaves them, or in memory for simulations."""

from pathlib import Path

import numpy as np

from vlmpeft.runtime.records import write_items, write_json
from vlmpeft.study.report.run import Items, Run


def made_run(scores, seed=0, metric="exact_match", clusters=None):
    """A run that was never written: scores (N,)."""
    scores = np.asarray(scores, float)
    ids = tuple(f"item-{n:05}" for n in range(len(scores)))
    tuned = {"test": {metric: float(np.nanmean(scores))}}
    record = {"status": "done", "seed": seed, "primary": metric, "metrics": {"tuned": tuned}}
    clusters = ids if clusters is None else tuple(map(str, clusters))
    items = Items(ids, clusters, {metric: scores}, tuple({} for _ in ids))
    return Run(Path(f"made-seed{seed}"), record).with_items(items)


def made_row(matrix, **options):
    """One run for each line of (S, N)."""
    return [made_run(line, seed, **options) for seed, line in enumerate(matrix)]


def an_item(name, *, generated="gear", expected="gear", scores=None, **other):
    """A line of items.jsonl.gz, in the writer's order."""
    item = {
        "id": name,
        "fields": other.pop("fields", {}),
        "image": other.pop("image", [f"{name}.png"]),
        "prompt": "what part is it?",
        "expected": expected,
        "generated": generated,
        "finish_reason": "stop",
        "token_log_probabilities": [-0.5, -0.25],
        "loss": 0.375,
        "tokens": 2,
        "scores": {"exact_match": float(generated == expected)} if scores is None else scores,
    }
    return item | other


def write_run(folder, items, *, seed=0, record_scores=None, **record):
    """A run folder with these items; its record has their mean scores, unless others are given."""
    metrics = list(items[0]["scores"])
    means = {
        m: float(np.mean([i["scores"][m] for i in items if m in i["scores"]])) for m in metrics
    }
    means |= record_scores or {}
    content = {
        "schema": 1,
        "status": "done",
        "task": "made",
        "seed": seed,
        "base": {"id": "tiny"},
        "primary": metrics[0],
        "metrics": {"base": {"test": means}, "tuned": {"test": means}},
    }
    write_json(folder / "result.json", content | record)
    write_items(folder / "items.jsonl.gz", items)
    return folder
