"""Runs of a study out of the arguments of `fit`, by the parser that `fit` has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmpeft.cli.config_files import run_arguments
from vlmpeft.cli.run_parser import PlanCLI
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.training.progress import FitProgress
from vlmpeft.training.run import FitRun

import lightning.pytorch as pl  # isort: skip  after vlmpeft.training


class RunOpener:
    """Makes the run that arguments of `fit` describe, in a folder that may exist.

    Args:
        callbacks: of every run's trainer.
    """

    def __init__(self, callbacks: Sequence[pl.Callback] = ()):
        self.callbacks = list(callbacks)
        quiet_libraries()
        # the tasks of a SLURM job share a study by its claims; Lightning would make one run of them all
        os.environ["SLURM_JOB_NAME"] = "interactive"

    def __call__(self, args: Sequence[str], folder: Path) -> FitRun:
        # which configs are meant was told once, for the study
        found = run_arguments(list(args), say=lambda _: None)
        cli = PlanCLI("fit", [*found, f"--resume={folder}"])
        trainer: Any = cli.trainer
        kept = [c for c in trainer.callbacks if not isinstance(c, FitProgress)]
        trainer.callbacks = [*kept, *self.callbacks]
        return cli.fit_run()
