"""Checkpoints that survive kill -9 and full disks, and the choice of the one that is scored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()  # Lightning imports torchmetrics, and that imports torchvision

import lightning.pytorch as pl
from lightning.pytorch.plugins import TorchCheckpointIO

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs and renames: the previous checkpoint lives until the new one does."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        target = Path(path)
        scratch = target.with_name(target.name + ".tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(target)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            scratch.unlink(missing_ok=True)
            raise UserError(
                f"checkpoint {target} could not be saved: {error}; the previous one is intact: free some "
                f"space, then fit --resume {target.parent.parent}"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Plain data only: a checkpoint of ours never needs more, and one from elsewhere must not run code."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a run, on the CPU; plain data only, so reading it runs no code.

    Raises:
        UserError: it is damaged, or holds more than plain data.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(checkpoint["global_step"], int) and isinstance(
            checkpoint["state_dict"], dict
        ):
            return checkpoint
        reason = "its step or its weights are of another form"
    except Exception as error:  # a file from elsewhere: whatever torch stumbles over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(_no_checkpoint(path, reason)) from error
    raise UserError(_no_checkpoint(path, reason))


def _no_checkpoint(path: Path, reason: str) -> str:
    return f"checkpoint {path} is none that `fit` wrote: {reason}; remove it to begin from step 0"


class RunCheckpoints(pl.Callback):
    """Keeps last.ckpt to resume from and, if `select` is best, best.ckpt to score.

    Args:
        folder: `checkpoints/` of the run.
        every: optimizer steps between two saves of last.ckpt.
        select: best or last.
        monitor: logged value that best means the highest of.
    """

    def __init__(self, folder: Path, every: int, select: str, monitor: str):
        self.folder, self.every, self.select, self.monitor = folder, every, select, monitor
        self.best_value: float | None = None
        self.best_step = 0
        self._saved_at = -1

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        if step and step % self.every == 0 and step != self._saved_at:
            self._save(trainer, LAST)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_at:
            self._save(trainer, LAST)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if (
            self.select != "best"
            or trainer.state.fn != "fit"
            or trainer.sanity_checking
            or value is None
        ):
            return
        if self.best_value is None or float(value) > self.best_value:
            self.best_value, self.best_step = float(value), trainer.global_step
            trainer.save_checkpoint(self.folder / BEST)

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        self._saved_at = trainer.global_step
        trainer.save_checkpoint(self.folder / name)

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]

    def load_selected(self, module: pl.LightningModule, step: int) -> dict[str, Any]:
        """Put the selected weights into the module; returns {by, step} for the record."""
        path = self.folder / BEST
        if self.select != "best" or not path.is_file():
            return {"by": "last", "step": step}
        module.load_state_dict(read_checkpoint(path)["state_dict"])
        return {"by": self.monitor, "step": self.best_step}
