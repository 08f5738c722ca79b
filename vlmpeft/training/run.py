"""One run from start to end: score the base, train, score again, leave adapter, items and record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.data.audit.audit import brief_audit
from vlmpeft.data.datamodule import VLMData
from vlmpeft.evaluation.scoring import Scores, score_loader, to_device
from vlmpeft.preflight.plan_table import plan_table
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.provenance import (
    folder_bytes,
    git_state,
    peak_memory_bytes,
    semantic_hash,
    versions,
)
from vlmpeft.runtime.records import SCHEMA, read_items, write_items, write_json, write_predictions
from vlmpeft.runtime.shipped import cache_dir
from vlmpeft.runtime.visible import terminal_console
from vlmpeft.strategies.plan import check_has_trainables
from vlmpeft.training.checkpoints import RunCheckpoints
from vlmpeft.training.gradient_check import gradient_self_test
from vlmpeft.training.module import VLMModule
from vlmpeft.training.report import device_name, model_card, print_result

import lightning.pytorch as pl  # isort: skip  after vlmpeft.training.module
from vlmpeft.training.settings import Eval, Search


class FitRun:
    """What `fit` does around `Trainer.fit`, step by step in call order.

    Args:
        run_dir: `runs/<name>/`.
        trainer: Lightning's.
        module: base and plan.
        data: conversations.
        evaluation: how the run is scored.
        config: resolved config, plain data.
        checkpoints: the callback that keeps last and best.
        search: how the settings were found.
    """

    def __init__(
        self,
        run_dir: Path,
        trainer: pl.Trainer,
        module: VLMModule,
        data: VLMData,
        evaluation: Eval,
        config: dict[str, Any],
        checkpoints: RunCheckpoints,
        search: Search = Search(),
    ):
        self.run_dir, self.trainer, self.module, self.data = run_dir, trainer, module, data
        self.evaluation, self.config, self.checkpoints = evaluation, config, checkpoints
        self.search = search
        self.console = terminal_console()
        self.seconds = {"load": 0.0, "fit": 0.0, "score": 0.0}
        self.metrics: dict[str, dict[str, Scores]] = {"base": {}, "tuned": {}}
        self.groups: dict[str, dict[str, dict[str, Scores]]] = {"base": {}, "tuned": {}}
        self.controls: dict[str, Scores] = {}

    # -- before --------------------------------------------------------------------------------

    def load(self) -> None:
        """Data, then base: broken data shows before gigabytes of weights are read."""
        with self.timed("load"):
            self.data.prepare(self.module.processor)
            self._report_data()
            self.module.load(self.trainer.strategy.root_device)
            self.base = origin(self.module.base)
        self.module.set_scorer(self.data)
        self.decoding = {
            "max_new_tokens": self.module.scorer.max_new_tokens,
            "end_ids": self.module.scorer.end_ids,
            "greedy": True,
        }

    def _report_data(self) -> None:
        for line in brief_audit(self.data):
            self.console.print(line, soft_wrap=True, markup=False)

    def score_base(self) -> None:
        """Score the untouched base on val and test; the result is cached by all that it depends on."""
        for split in self._scored_splits():
            key = semantic_hash(self._base_score_identity(split))
            path = cache_dir() / "base_scores" / f"{key}.jsonl.gz"
            if path.is_file():
                head, *_ = read_items(path)
                self.metrics["base"][split], self.groups["base"][split] = (
                    head["metrics"],
                    head["groups"],
                )
                continue
            items = self._score("base", split)
            head = {"metrics": self.metrics["base"][split], "groups": self.groups["base"][split]}
            write_items(path, [head, *items])

    def _base_score_identity(self, split: str) -> dict[str, Any]:
        return {
            "base": {key: self.base[key] for key in ("fingerprint", "bits")},
            "data": self.data.identity()[split],
            "encoder": self.data.encoder.identity(),
            "decoding": self.decoding,
            "metrics": [metric.identity() for metric in self.module.metrics],
            "group_by": self.data.group_by,
            "evaluation": {
                "limit": self.evaluation.limit,
                "batch_size": self.evaluation.batch_size,
            },
            "device": self.trainer.strategy.root_device.type,
            "versions": versions(),
        }

    def attach(self, init_adapter: Adapter | None) -> None:
        """Attach the plan, start from another adapter if asked to, and print what will be trained."""
        self.module.trainer = self.trainer
        self.module.configure_model()
        check_has_trainables(self.module.attached)
        if init_adapter:
            self.module.start_from(init_adapter, self.base)
        self.console.print(plan_table(self.module.attached))
        if self.module.self_test != "off":
            self._self_test()

    def _self_test(self) -> None:
        """One batch with a picture, if there is one, through the model that is about to be trained.

        Raises:
            UserError: a gradient is missing, or is where none should be; `self_test: warn` prints it instead.
        """
        batch = to_device(self.data.probe_batch(), self.trainer.strategy.root_device)
        with self.module.autocast():
            result = gradient_self_test(self.module.attached, batch)
        self.module.unreachable = result.unreachable
        if unreachable := result.unreachable:
            self.console.print(
                f"{len(unreachable)} trainable tensors do not reach the loss and stay as they are, e.g. {unreachable[0]}"
            )
        if not result.problems:
            return
        message = f"gradient self-test: {len(result.problems)} problem(s): {'; '.join(result.problems[:5])}"
        if self.module.self_test == "error":
            raise UserError(f"{message}; model.self_test=warn goes on all the same")
        self.console.print(f"warning: {message}")

    def write_split(self) -> None:
        """Which conversation is in which split, if splits were taken out of train."""
        if members := self.data.split_members():
            write_json(self.run_dir / "split.json", members)

    # -- after ---------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Load the selected checkpoint, score it, save the adapter, write the record."""
        steps = self.trainer.global_step
        self.seconds["fit"] += self.module.seconds_before
        self.selected = self.checkpoints.load_selected(self.module, steps)
        items = self._score_tuned()
        self._score_controls()
        adapter = self._save_adapter()
        if items:
            write_items(self.run_dir / "items.jsonl.gz", items)
            write_predictions(self.run_dir / "predictions.jsonl", items)
        record = self._record(steps, adapter)
        write_json(self.run_dir / "result.json", record)
        title = f"{self.run_dir.name}: before and after ({self.selected['by']} checkpoint)"
        print_result(self.console, title, record, adapter)
        return record

    def _score_tuned(self) -> list[dict[str, Any]]:
        """Items of the reported split."""
        items = {split: self._score("tuned", split) for split in self._scored_splits()}
        return items[self._reported_split()] if items else []

    def _score_controls(self) -> None:
        """The reported split with other pictures in place of its own."""
        for control in self.evaluation.controls if self._scored_splits() else ():
            scores, _ = self._run_scorer(self._reported_split(), control)
            self.controls[control] = scores

    def _scored_splits(self) -> list[str]:
        return [split for split in ("val", "test", "retention") if self.data.has(split)]

    def _reported_split(self) -> str:
        """Test, else val: the split of items, controls and the primary score."""
        return next(split for split in ("test", "val", "retention") if self.data.has(split))

    def _score(self, state: str, split: str) -> list[dict[str, Any]]:
        """Score a split with the model as it is, `base` or `tuned`; returns its items."""
        self.metrics[state][split], items = self._run_scorer(split)
        self.groups[state][split] = self.module.scorer.groups() if split != "retention" else {}
        return items

    def _run_scorer(
        self, split: str, control: str | None = None
    ) -> tuple[Scores, list[dict[str, Any]]]:
        with self.timed("score"):
            loader = self.data.scoring_loader(split, control)
            device = self.trainer.strategy.root_device
            return score_loader(
                self.module.scorer, self.module.model, loader, device, self.module.autocast()
            )

    def _save_adapter(self) -> Path:
        return save_adapter(
            self.run_dir / "adapter",
            self.module.attached,
            processor=self.module.processor,
            base=self.base,
            chat_template=self.data.encoder.template if self.data.chat_template else None,
            decoding=self.decoding,
            max_pixels=self.data.max_pixels,
            card=model_card(self.run_dir.name, self.base, self.module.plan, self.metrics),
        )

    def _record(self, steps: int, adapter: Path) -> dict[str, Any]:
        summary = self.module.attached.summary()
        sizes = {name: p.numel() for name, p in self.module.attached.trainable().items()}
        device = self.trainer.strategy.root_device
        return {
            "schema": SCHEMA,
            "status": "done",
            "study": None,
            "row": None,
            "task": self.data.reader.name("train"),
            "seed": self.module.seed,
            "base": self.base,
            "data": self.data.identity(),
            "metrics": self.metrics,
            "groups": self.groups if self.data.group_by else None,
            "controls": self.controls or None,
            "primary": self.module.metrics[0].name,
            "selected": self.selected,
            "search": asdict(self.search),
            "decoding": self.decoding,
            "trainable": summary["trainable"],
            "reachable": sum(sizes[name] for name in self.module.reached),
            "total": summary["total"],
            "components": summary["components"],
            "steps": steps,
            "supervised_tokens": self.module.supervised_tokens,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "peak_memory_bytes": peak_memory_bytes(device.type == "cuda"),
            "adapter_bytes": folder_bytes(adapter),
            "skipped": len(self.data.skipped),
            "config": self.config,
            "config_hash": semantic_hash(self._identity()),
            "versions": versions(),
            "device": device_name(device),
            "git": git_state(),
        }

    def _identity(self) -> dict[str, Any]:
        """What makes this run this run: no paths, names, workers, loggers, devices or versions."""
        trainer, data = self.config["trainer"], self.config["data"]
        schedule = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val")
        batches = ("batch_size", "max_length", "max_pixels", "over_length", "on_error")
        module = ("weight_decay", "warmup_ratio", "gradient_checkpointing")
        return {
            "plan": self.module.plan.to_dict(),
            "base": {key: self.base[key] for key in ("fingerprint", "bits")},
            "data": self.data.identity(),
            "template": self.data.encoder.template,
            "schedule": {key: trainer.get(key) for key in schedule}
            | {key: data[key] for key in batches}
            | {key: self.config["model"][key] for key in module},
            "metrics": [metric.identity() for metric in self.module.metrics],
            "evaluation": asdict(self.evaluation) | {"batch_size": None, "controls": None},
            "seed": self.module.seed,
        }

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add what the block takes to one of the run's seconds."""
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start


def new_run_dir(runs_dir: str, name: str | None, default: str) -> Path:
    """`runs_dir/name`; a given name must be free, the default one gets a number if it is not.

    Raises:
        UserError: the given name is taken.
    """
    root = Path(runs_dir)
    if name:
        if (root / name).exists():
            raise UserError(
                f"run {root / name} exists and is not overwritten; give another --run_name, or go on with "
                f"fit --resume {root / name}"
            )
        return root / name
    candidates = (root / (f"{default}-{n}" if n > 1 else default) for n in range(1, 10_000))
    return next(path for path in candidates if not path.exists())
