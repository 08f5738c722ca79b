"""The Lightning verbs: fit, validate, test, predict."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.base.loading import parameter_count
from vlmpeft.cli.run_parser import RunCLI
from vlmpeft.evaluation.scoring import score_loader
from vlmpeft.runtime.errors import Interrupted, UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.records import (
    read_record,
    write_atomically,
    write_items,
    write_json,
    write_predictions,
)
from vlmpeft.runtime.visible import terminal_console, visible
from vlmpeft.training.checkpoints import (
    BEST,
    LAST,
    read_checkpoint,
)
from vlmpeft.training.report import group_table, headlines
from vlmpeft.training.run import FitRun

ASK_ABOVE = 1_000_000_000  # parameters of a base that a CPU takes hours for


class VLMCLI(RunCLI):
    """One verb of Lightning's with our module, data and run folder."""

    # -- fit -----------------------------------------------------------------------------------

    def fit(self, **_: Any) -> None:
        """The fit verb: score, train, score, save."""
        settings = self.settings
        init_adapter = Adapter.read(settings.init_adapter) if settings.init_adapter else None
        self._check_folders()
        self._ask_about_size()
        run = FitRun(
            self.run_dir,
            self.trainer,
            self.module,
            self.data,
            self.evaluation,
            self._plain_config,
            self.checkpoints,
            self._get(self.config_init, "search"),
        )
        with self._failure_recorded():
            run.load()
            if not settings.resume:
                text = yaml.safe_dump(self._plain_config, sort_keys=False)
                write_atomically(self.run_dir / "config.yaml", text.encode())
                run.write_split()
            run.score_base()
            run.attach(init_adapter)
            with run.timed("fit"), self._interruption():
                self.trainer.fit(self.module, datamodule=self.data, ckpt_path=self._checkpoint())
            run.finish()

    def _check_folders(self) -> None:
        """Look at what a run left before anything is loaded.

        Raises:
            UserError: the run is finished; a damaged record or checkpoint.
        """
        if not self.settings.resume:
            return
        record = read_record(self.run_dir)
        if record and record["status"] == "done":
            raise UserError(
                f"run {self.run_dir} is finished; its record is {self.run_dir / 'result.json'}"
            )
        for name in (LAST, BEST):
            if (path := self.run_dir / "checkpoints" / name).is_file():
                read_checkpoint(path)

    @contextlib.contextmanager
    def _interruption(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end a run that can be resumed; Lightning leaves by SystemExit on both."""
        try:
            yield
        except SystemExit as error:
            raise Interrupted(
                f"stopped; go on with: python -m vlmpeft fit --resume {self.run_dir}"
            ) from error

    def _checkpoint(self) -> str | None:
        """The checkpoint to resume from, with the log cut back to it; None starts from step 0."""
        path = self.run_dir / "checkpoints" / LAST
        if not self.settings.resume:
            return None
        if not path.is_file():
            self.metrics_csv.cut_back(0)
            return None
        self.metrics_csv.cut_back(read_checkpoint(path)["global_step"])
        return str(path)

    def _ask_about_size(self) -> None:
        if self.settings.yes or self.trainer.strategy.root_device.type != "cpu":
            return
        total = sum(parameter_count(self.module.base).values())
        if total > ASK_ABOVE:
            raise UserError(
                f"base {self.module.base.path} has {total / 1e9:.1f} B parameters and there is no GPU: this "
                "takes hours to days; add --yes=true to go ahead"
            )

    @contextlib.contextmanager
    def _failure_recorded(self) -> Iterator[None]:
        """Leave a record that says what went wrong, or no folder at all if nothing had begun."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            if (self.run_dir / "checkpoints").is_dir() or self.settings.resume:
                failed = {
                    "schema": 1,
                    "status": "failed",
                    "error": str(error),
                    "config": self._plain_config,
                }
                with contextlib.suppress(UserError):
                    write_json(self.run_dir / "result.json", failed)
            else:
                shutil.rmtree(self.run_dir, ignore_errors=True)
            raise

    # -- validate, test, predict ---------------------------------------------------------------

    def validate(self, **_: Any) -> None:
        """Score val."""
        self._prepare_scoring("val")
        self.trainer.validate(self.module, datamodule=self.data, verbose=False)
        self._print_scores("val")

    def test(self, **_: Any) -> None:
        """Score test."""
        self._prepare_scoring("test")
        self.trainer.test(self.module, datamodule=self.data, verbose=False)
        self._print_scores("test")

    def predict(self, **_: Any) -> None:
        """Answer the test split (val if there is none) and write predictions.jsonl."""
        split = "test" if self.data.has_source("test") else "val"
        self._prepare_scoring(split)
        # not Trainer.predict: it rebuilds the loader around batch samplers of its own
        _, items = score_loader(
            self.module.scorer,
            self.module.model,
            self.data.scoring_loader(split),
            self.trainer.strategy.root_device,
            self.module.autocast(),
        )
        path = self._out_dir() / "predictions.jsonl"
        write_predictions(path, items)
        print(visible(f"{len(items)} predictions: {path}"))  # noqa: T201

    def _prepare_scoring(self, split: str) -> None:
        folder = self.settings.adapter
        # what is wrong with it shows before the data is read and the base is loaded
        adapter = Adapter.read(folder) if folder else None
        if adapter:
            self.data.max_pixels = adapter.manifest.max_pixels
        self.data.prepare(self.module.processor, splits=(split,))
        self.module.load(self.trainer.strategy.root_device)
        self.module.trainer = self.trainer
        if adapter:
            self.module.use_adapter(adapter)
        else:
            self.module.plan = self.module.plan.untrained()
        self.module.set_scorer(self.data, adapter.manifest.decoding if adapter else None)

    def _out_dir(self) -> Path:
        """--out, else the run folder of the adapter, else the working directory."""
        if self.settings.out:
            return Path(self.settings.out)
        adapter = self.settings.adapter
        return Path(adapter).parent if adapter else Path.cwd()

    def _print_scores(self, split: str) -> None:
        scorer = self.module.scorer
        scores, groups = scorer.compute(), scorer.groups()
        console = terminal_console()
        console.print(
            f"{split}, {len(scorer.items)} items: "
            + ", ".join(f"{name} {scores[name]:.6f}" for name in headlines(scores))
        )
        if groups:
            console.print(group_table(f"{split} by {self.data.group_by}", groups))
        print(json.dumps({f"{split}/{name}": value for name, value in scores.items()}))  # noqa: T201
        if self.settings.out:
            write_items(Path(self.settings.out) / "items.jsonl.gz", scorer.items)


def run(verb: str, args: list[str]) -> None:
    """Run one Lightning verb."""
    quiet_libraries()
    VLMCLI(verb, args)
