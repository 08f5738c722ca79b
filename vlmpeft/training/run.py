"""One run from start to end: score the base, train, score again, leave adapter, items and record."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.data.audit.audit import brief_audit
from vlmpeft.data.datamodule import VLMData
from vlmpeft.evaluation.scoring import Scores, score_loader, to_device
from vlmpeft.preflight.plan_table import plan_table
from vlmpeft.runtime.errors import Interrupted, UserError, error_line
from vlmpeft.runtime.provenance import semantic_hash, versions
from vlmpeft.runtime.records import (
    SCHEMA,
    read_items,
    write_atomically,
    write_items,
    write_json,
    write_predictions,
)
from vlmpeft.runtime.shipped import cache_dir
from vlmpeft.runtime.visible import terminal_console
from vlmpeft.strategies.plan import check_has_trainables
from vlmpeft.training.checkpoints import LAST, RunCheckpoints, read_checkpoint
from vlmpeft.training.gradient_check import gradient_self_test
from vlmpeft.training.module import VLMModule
from vlmpeft.training.progress import MetricsCsv
from vlmpeft.training.report import model_card, print_result
from vlmpeft.training.run_record import run_record

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
        log: metrics.csv.
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
        log: MetricsCsv,
        search: Search = Search(),
    ):
        self.run_dir, self.trainer, self.module, self.data = run_dir, trainer, module, data
        self.evaluation, self.config, self.checkpoints = evaluation, config, checkpoints
        self.log, self.search = log, search
        self.labels: dict[str, Any] = {}  # study, row, task: of a run that a study makes
        self.base: dict[str, Any] = {}
        self.console = terminal_console()
        self.seconds = {"load": 0.0, "fit": 0.0, "score": 0.0}
        self.metrics: dict[str, dict[str, Scores]] = {"base": {}, "tuned": {}}
        self.groups: dict[str, dict[str, dict[str, Scores]]] = {"base": {}, "tuned": {}}
        self.controls: dict[str, Scores] = {}
        self.base_items: list[dict[str, Any]] = []  # of the reported split

    def execute(
        self, *, resume: bool = False, init_adapter: Adapter | None = None
    ) -> dict[str, Any]:
        """Every step in order; returns the record.

        Args:
            resume: go on from the last checkpoint of the run folder.
            init_adapter: what the training starts from.

        Raises:
            UserError: as the steps say; the run folder then holds a record of the failure, or is gone if nothing had begun.
            Interrupted: Ctrl-C or SIGTERM while it trained; the run can be resumed.
        """
        with self._failure_recorded(resume):
            self.load()
            if not resume:
                text = yaml.safe_dump(self.config, sort_keys=False)
                write_atomically(self.run_dir / "config.yaml", text.encode())
                self.write_split()
            self.score_base()
            self.attach(init_adapter)
            with self.timed("fit"), self._interruption():
                checkpoint = self._checkpoint() if resume else None
                self.trainer.fit(self.module, datamodule=self.data, ckpt_path=checkpoint)
            return self.finish()

    # -- before --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Read the data and recognise the base; no weights are loaded. What the run is, is known then."""
        if self.base:
            return
        with self.timed("load"):
            self.data.prepare(self.module.processor)
            self.base = origin(self.module.base)

    def load(self) -> None:
        """Data, then base: broken data shows before gigabytes of weights are read."""
        self.prepare()
        with self.timed("load"):
            self._report_data()
            self.module.load(self.trainer.strategy.root_device)
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
                head, *items = read_items(path)
                self.metrics["base"][split] = head["metrics"]
                self.groups["base"][split] = head["groups"]
            else:
                items = self._score("base", split)
                head = {
                    "metrics": self.metrics["base"][split],
                    "groups": self.groups["base"][split],
                }
                write_items(path, [head, *items])
            if split == self._reported_split():
                self.base_items = items

    def _base_score_identity(self, split: str) -> dict[str, Any]:
        return {
            "base": {key: self.base[key] for key in ("fingerprint", "bits")},
            "data": self.data.identity()[split],
            "encoder": self.data.encoder.identity(),
            "decoding": self.decoding | {"max_new_tokens": self.data.answer_limit(split)},
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

    def _checkpoint(self) -> str | None:
        """The checkpoint to resume from, with the log cut back to it; None starts from step 0."""
        path = self.run_dir / "checkpoints" / LAST
        if not path.is_file():
            self.log.cut_back(0)
            return None
        self.log.cut_back(read_checkpoint(path)["global_step"])
        return str(path)

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
        record = run_record(self, steps, adapter)
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
        wanted = self.evaluation.splits or ("val", "test", "retention")
        return [s for s in ("val", "test", "retention") if s in wanted and self.data.has(s)]

    def _reported_split(self) -> str:
        """Test, else val: the split of items, controls and the primary score."""
        scored = self._scored_splits()
        return next(split for split in ("test", "val", "retention") if split in scored)

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
            device, scorer = self.trainer.strategy.root_device, self.module.scorer
            with scorer.limited_to(self.data.answer_limit(split)):
                return score_loader(
                    scorer, self.module.model, loader, device, self.module.autocast()
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

    # -- what can happen -----------------------------------------------------------------------

    @contextlib.contextmanager
    def _interruption(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end a run that can be resumed; Lightning leaves by SystemExit on both."""
        try:
            yield
        except SystemExit as error:
            raise Interrupted(
                f"stopped; go on with: python -m vlmpeft fit --resume {self.run_dir}"
            ) from error

    @contextlib.contextmanager
    def _failure_recorded(self, resume: bool) -> Iterator[None]:
        """Leave a record that says what went wrong, or no folder at all if nothing had begun."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            if (self.run_dir / "checkpoints").is_dir() or resume or self.labels:
                failed = {
                    "schema": SCHEMA,
                    "status": "failed",
                    "error": error_line(error),
                    "config": self.config,
                    "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
                } | self.labels
                with contextlib.suppress(UserError):
                    write_json(self.run_dir / "result.json", failed)
            else:
                shutil.rmtree(self.run_dir, ignore_errors=True)
            raise

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add what the block takes to one of the run's seconds."""
        start = time.perf_counter()
        try:
            yield
        finally:
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
