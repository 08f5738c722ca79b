"""What a run shows while it runs: one bar with loss, supervised tokens a second, memory and time left."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from tqdm import tqdm

from vlmpeft.runtime.provenance import peak_memory_bytes


class FitProgress(ProgressBar):
    """One bar over all optimizer steps; a line every tenth of the run where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._started, self._tokens = 0.0, 0

    def disable(self) -> None:
        """Called by Lightning on ranks other than 0."""
        self._started = -1.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._started < 0:
            return
        total = int(trainer.estimated_stepping_batches)
        tty = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=trainer.global_step,
            desc="fit",
            unit="step",
            mininterval=0.2 if tty else 0,
            maxinterval=10 if tty else float("inf"),
            miniters=None if tty else max(1, total // 10),
            dynamic_ncols=True,
        )
        self._started, self._tokens = time.monotonic(), pl_module.supervised_tokens

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if self._bar is None:
            return
        seconds = time.monotonic() - self._started
        rate = (pl_module.supervised_tokens - self._tokens) / max(seconds, 1e-9)
        memory = peak_memory_bytes(pl_module.device.type == "cuda") / 2**30
        loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, {rate:.0f} tok/s, {memory:.2f} GiB", refresh=False
        )
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class MetricsCsv(Logger):
    """`metrics.csv`: step, name, value; appended, and cut back to the checkpoint on a resume."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        new = not self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "name", "value"])
            writer.writerows([step, name, repr(float(value))] for name, value in metrics.items())

    def cut_back(self, step: int) -> None:
        """Forget what was logged after a step: a resumed run logs it again."""
        if not self.path.is_file():
            return
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))
        kept = [row for row in rows[1:] if len(row) == 3 and int(row[0]) < step]
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([rows[0], *kept])
