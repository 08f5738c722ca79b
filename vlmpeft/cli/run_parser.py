"""The keys of a run: one parser for every verb that takes them, and what is built of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vlmpeft.cli.config_files import names_of
from vlmpeft.cli.explain import explain
from vlmpeft.data.datamodule import VLMData
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.registry import STRATEGIES, import_all
from vlmpeft.strategies.plan import allow_strategies
from vlmpeft.training.checkpoints import (
    AtomicCheckpointIO,
    RunCheckpoints,
)
from vlmpeft.training.module import VLMModule
from vlmpeft.training.progress import FitProgress, MetricsCsv
from vlmpeft.training.run import FitRun, new_run_dir
from vlmpeft.training.settings import Eval, Search

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI  # isort: skip


class _Parser(LightningArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UserError(explain(str(message), _option_names(self))) from ex


def _option_names(parser: Any) -> list[str]:
    """Every option of a parser and of its subcommands."""
    names = []
    for action in parser._actions:
        names += action.option_strings
        if isinstance(action.choices, dict):
            names += [
                name for subparser in action.choices.values() for name in _option_names(subparser)
            ]
    return names


class RunCLI(LightningCLI):
    """The keys of a run, parsed and made into trainer, module and data.

    Args:
        verb: fit, validate, test or predict.
        args: its arguments.
    """

    def __init__(self, verb: str, args: list[str]):
        self.verb = verb
        import_all(STRATEGIES)
        super().__init__(
            VLMModule,
            VLMData,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": 3,
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 1,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
            },
            parser_class=_Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=[verb, *args],
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was given; Lightning warns if the process has arguments of its own, which are the same here."""
        self.config = parser.parse_args(args)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The chosen verb alone: four parsers of this size take seconds to build."""
        skip = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {self.verb: skip | {"ckpt_path", "weights_only", "verbose", "return_predictions"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Eval, "eval")
        parser.add_class_arguments(Search, "search")
        # a run's config.yaml serves every verb, so every verb takes the keys of a run
        parser.add_argument("--runs_dir", type=str, default="runs", help="Where run folders are.")
        parser.add_argument(
            "--run_name", type=str | None, default=None, help="Name of the run folder."
        )
        parser.add_argument(
            "--init_adapter",
            type=str | None,
            default=None,
            help="Adapter folder that a fit starts from.",
        )
        parser.add_argument(
            "--checkpoint_every",
            type=int,
            default=50,
            help="Optimizer steps between two checkpoints.",
        )
        parser.add_argument(
            "--allow_strategy",
            type=str | None,
            default=None,
            help="Strategies of your own that an adapter may name: mine.A,mine.B. They are imported; without it nothing "
            "that a file names is.",
        )
        if self.verb == "fit":
            parser.add_argument(
                "--resume", type=str | None, default=None, help="Run folder to go on with."
            )
            parser.add_argument(
                "--yes", type=bool, default=False, help="Go ahead with a big base on a CPU."
            )
        else:
            parser.add_argument(
                "--adapter",
                type=str | None,
                default=None,
                help="Adapter folder; null scores the base.",
            )
            parser.add_argument(
                "--out", type=str | None, default=None, help="Folder for predictions."
            )

    @property
    def settings(self) -> Any:
        """The configuration of the chosen verb."""
        return self.config[self.verb]

    # -- instantiation -------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        settings = self.settings
        allow_strategies(names_of(settings.allow_strategy))
        if settings.trainer.precision is None:
            wanted = settings.trainer.accelerator
            gpu = torch.cuda.is_available() and wanted in ("auto", "gpu", "cuda")
            settings.trainer.precision = "bf16-mixed" if gpu else "32-true"
        if self.verb == "fit":
            self._set_run_dir()
        self._plain_config = self._dump()

    def _set_run_dir(self) -> None:
        settings = self.settings
        if settings.resume:
            self.run_dir = Path(settings.resume)
            return
        configs = [Path(str(config)) for config in settings.get("config") or []]
        default = "fit"
        if configs:  # of a run's own config.yaml, the run's name
            last = configs[-1].absolute()
            default = last.parent.name if last.name == "config.yaml" else last.stem
        self.run_dir = new_run_dir(settings.runs_dir, settings.run_name, default)

    def _validation_settings(self) -> dict[str, Any]:
        """Validate inside the fit only where something depends on it."""
        settings = self.settings
        if settings.eval.every:
            batches = settings.eval.every * settings.trainer.accumulate_grad_batches
            return {"val_check_interval": batches, "check_val_every_n_epoch": None}
        return {"limit_val_batches": 0} if settings.eval.select == "last" else {}

    def _dump(self) -> dict[str, Any]:
        """The resolved configuration as plain data, without what is only about this call."""
        text = self._parser(self.verb).dump(self.settings, skip_validation=True, format="json")
        plain = json.loads(text)
        for key in ("config", "resume", "yes", "run_name", "runs_dir", "allow_strategy"):
            plain.pop(key, None)
        return plain

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except ValueError as error:  # jsonargparse wraps what a strategy says of its own values
            raise UserError(explain(str(error), [])) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        settings = self._get(self.config_init, "trainer")
        kwargs["plugins"] = [*_as_list(settings.plugins), AtomicCheckpointIO()]
        kwargs["callbacks"] = _as_list(settings.callbacks)
        kwargs["logger"] = [*_as_list(settings.logger)]
        if self.verb == "fit":
            evaluation = self._get(self.config_init, "eval")
            self.metrics_csv = MetricsCsv(self.run_dir / "metrics.csv")
            self.checkpoints = RunCheckpoints(
                self.run_dir / "checkpoints",
                self.settings.checkpoint_every,
                evaluation.select,
                f"val/{self.model.metrics[0].name}",
            )
            kwargs["logger"].append(self.metrics_csv)
            kwargs["callbacks"] += [self.checkpoints, FitProgress()]
            kwargs |= self._validation_settings()
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        evaluation = self._get(self.config_init, "eval")
        seed = self.settings.seed_everything
        self.module, self.data, self.evaluation = self.model, self.datamodule, evaluation
        self.module.seed = self.data.seed = int(seed) if seed is not None else 0
        self.data.eval_batch_size, self.data.eval_limit = evaluation.batch_size, evaluation.limit

    def fit_run(self) -> FitRun:
        """The run that these keys describe."""
        return FitRun(
            self.run_dir,
            self.trainer,
            self.module,
            self.data,
            self.evaluation,
            self._plain_config,
            self.checkpoints,
            self.metrics_csv,
            self._get(self.config_init, "search"),
        )


class PlanCLI(RunCLI):
    """Parses the arguments of a fit and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
