"""The Lightning verbs: fit, validate, test, predict."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.base.loading import parameter_count
from vlmpeft.cli.config_files import names_of
from vlmpeft.cli.explain import explain
from vlmpeft.data.datamodule import VLMData
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
from vlmpeft.runtime.registry import STRATEGIES, import_all
from vlmpeft.runtime.visible import terminal_console, visible
from vlmpeft.strategies.plan import allow_strategies
from vlmpeft.training.checkpoints import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    RunCheckpoints,
    read_checkpoint,
)
from vlmpeft.training.module import VLMModule
from vlmpeft.training.progress import FitProgress, MetricsCsv
from vlmpeft.training.report import group_table, headlines
from vlmpeft.training.run import FitRun, new_run_dir
from vlmpeft.training.settings import Eval, Search

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI  # isort: skip

ASK_ABOVE = 1_000_000_000  # parameters of a base that a CPU takes hours for


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


class VLMCLI(LightningCLI):
    """One verb of Lightning's with our module, data and run folder.

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


class PlanCLI(VLMCLI):
    """Parses the arguments of a fit and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def run(verb: str, args: list[str]) -> None:
    """Run one Lightning verb."""
    quiet_libraries()
    VLMCLI(verb, args)
