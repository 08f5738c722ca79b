"""SIGTERM, SIGUSR1 and Ctrl-C: the run that trains saves a checkpoint, and the study ends so that it can go on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from vlmpeft.runtime.errors import Interrupted
from vlmpeft.training.checkpoints import LAST, RunCheckpoints

import lightning.pytorch as pl  # isort: skip  after vlmpeft.training.checkpoints

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
GO_ON = "stopped; the same command goes on where it was"


class Stop(pl.Callback):
    """Ends the training of a run when it was asked to, after a step, with a checkpoint.

    Asked while nothing trains, it ends at once: whatever else is done is done again.
    """

    def __init__(self) -> None:
        self.is_requested = self._is_training = False

    def request(self, *_: Any) -> None:
        """The handler of the signals."""
        if self.is_requested or not self._is_training:  # or asked for the second time
            self._is_training = False
            raise Interrupted(GO_ON)
        self.is_requested = True

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Inside, the signals request a stop."""
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {number: signal.signal(number, self.request) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_training = True

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if self.is_requested:
            self._is_training = False
            _save(trainer)
            raise Interrupted(GO_ON)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_training = False
        if self.is_requested:
            _save(trainer)
            raise Interrupted(GO_ON)

    def on_exception(self, *args: Any) -> None:
        self._is_training = False


def _save(trainer: Any) -> None:
    for callback in trainer.callbacks:
        if isinstance(callback, RunCheckpoints):
            trainer.save_checkpoint(callback.folder / LAST)
