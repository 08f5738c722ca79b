"""The record of a run, and what makes a run the same run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmpeft.runtime.provenance import (
    folder_bytes,
    git_state,
    peak_memory_bytes,
    semantic_hash,
    versions,
)
from vlmpeft.runtime.records import SCHEMA
from vlmpeft.training.report import device_name

if TYPE_CHECKING:
    from vlmpeft.training.run import FitRun

SCHEDULE = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val")
BATCHES = ("batch_size", "max_length", "max_pixels", "over_length", "on_error")
MODULE = ("weight_decay", "warmup_ratio", "gradient_checkpointing")


def run_record(run: FitRun, steps: int, adapter: Path) -> dict[str, Any]:
    """`result.json` of a finished run.

    Args:
        run: after its scores.
        steps: optimizer steps it made.
        adapter: folder it left.
    """
    module, data = run.module, run.data
    summary = module.attached.summary()
    sizes = {name: p.numel() for name, p in module.attached.trainable().items()}
    device = run.trainer.strategy.root_device
    identity = run_identity(run)
    return {
        "schema": SCHEMA,
        "status": "done",
        "study": None,
        "row": None,
        "task": data.reader.name("train"),
        "seed": module.seed,
        "base": run.base,
        "data": data.identity(),
        "metrics": run.metrics,
        "groups": run.groups if data.group_by else None,
        "controls": run.controls or None,
        "primary": module.metrics[0].name,
        "selected": run.selected,
        "search": asdict(run.search),
        "decoding": run.decoding,
        "trainable": summary["trainable"],
        "reachable": sum(sizes[name] for name in module.reached),
        "total": summary["total"],
        "added": summary["added"],
        "components": summary["components"],
        "steps": steps,
        "supervised_tokens": module.supervised_tokens,
        "seconds": {name: round(value, 3) for name, value in run.seconds.items()},
        "peak_memory_bytes": peak_memory_bytes(device.type == "cuda"),
        "adapter_bytes": folder_bytes(adapter),
        "skipped": len(data.skipped),
        "config": run.config,
        "identity": identity,
        "config_hash": semantic_hash(identity),
        "versions": versions(),
        "device": device_name(device),
        "git": git_state(),
    } | run.labels


def run_identity(run: FitRun) -> dict[str, Any]:
    """What makes this run this run: no paths, names, workers, loggers, devices or versions."""
    trainer, data, model = (run.config[key] for key in ("trainer", "data", "model"))
    schedule = {key: trainer.get(key) for key in SCHEDULE}
    schedule |= {key: data[key] for key in BATCHES} | {key: model[key] for key in MODULE}
    return {
        "plan": run.module.plan.to_dict(),
        "base": {key: run.base[key] for key in ("fingerprint", "bits")},
        "data": run.data.identity(),
        "template": run.data.encoder.template,
        "schedule": schedule,
        "metrics": [metric.identity() for metric in run.module.metrics],
        "evaluation": asdict(run.evaluation) | {"batch_size": None, "controls": None},
        "seed": run.module.seed,
    }
