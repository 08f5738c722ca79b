"""The Lightning verbs: fit, validate, test, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.base.loading import parameter_count
from vlmpeft.cli.run_parser import RunCLI
from vlmpeft.evaluation.scoring import score_loader
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.records import read_record, write_items, write_predictions
from vlmpeft.runtime.visible import terminal_console, visible
from vlmpeft.training.checkpoints import BEST, LAST, read_checkpoint
from vlmpeft.training.report import group_table, headlines

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
        self.fit_run().execute(resume=bool(settings.resume), init_adapter=init_adapter)

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

    def _ask_about_size(self) -> None:
        if self.settings.yes or self.trainer.strategy.root_device.type != "cpu":
            return
        total = sum(parameter_count(self.module.base).values())
        if total > ASK_ABOVE:
            raise UserError(
                f"base {self.module.base.path} has {total / 1e9:.1f} B parameters and there is no GPU: this "
                "takes hours to days; add --yes=true to go ahead"
            )

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
