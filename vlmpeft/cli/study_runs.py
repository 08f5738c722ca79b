"""Runs of a study out of the arguments of `fit`, by the parser that `fit` has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vlmpeft.cli.config_files import run_arguments
from vlmpeft.cli.run_parser import PlanCLI
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
        # the tasks of a SLURM job share a study by its claims; Lightning would make one run of them all
        os.environ["SLURM_JOB_NAME"] = "interactive"

    def __call__(self, args: Sequence[str], folder: Path) -> FitRun:
        cli = PlanCLI("fit", [*run_arguments(list(args)), f"--resume={folder}"])
        trainer = cli.trainer
        kept = [c for c in trainer.callbacks if not isinstance(c, FitProgress)]
        trainer.callbacks = [*kept, *self.callbacks]
        return cli.fit_run()
