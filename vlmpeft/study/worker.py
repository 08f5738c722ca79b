"""One process that makes run after run on one base and one reading of the data."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vlmpeft.base.integrity import State, changes, model_state
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.datamodule import VLMData
from vlmpeft.runtime.records import read_json_or_none, write_items, write_json
from vlmpeft.study.identity import plain
from vlmpeft.study.order import Order
from vlmpeft.study.report.records import BASE_ROW
from vlmpeft.study.spectrum import singular_values
from vlmpeft.training.frozen_tower import KeptOutputs
from vlmpeft.training.run import FitRun
from vlmpeft.training.run_record import run_identity

OpenRun = Callable[[Sequence[str], Path], FitRun]  # arguments of `fit`, run folder -> the run
IDENTITY = "identity.json"  # of a run that has begun: a checkpoint of another run is not resumed


class Worker:
    """Makes runs one after another: attach, fit, score, save, detach.

    What runs have in common is made once: the base with its weights, the data with its tokens, what a frozen tower makes of each
    picture. The base is compared with itself after each run.

    Args:
        open_run: makes a run of the arguments of `fit` and the folder it leaves.
    """

    def __init__(self, open_run: OpenRun):
        self._open = open_run
        # spec, what was loaded, its state
        self._base: tuple[BaseSpec, tuple[Any, ...], State] | None = None
        self._data: dict[str, VLMData] = {}
        self._kept: dict[str, KeptOutputs] = {}
        self._identities: dict[str, dict[str, Any]] = {}
        self._asked = threading.Lock()

    def prepare(self, args: Sequence[str], folder: Path) -> FitRun:
        """A run with its data read and its base recognised; no weights are loaded."""
        run = self._open(args, folder)
        run.console = Console(quiet=True)  # the study has a view of its own
        spec = run.module.base
        if self._base and self._base[0] != spec:
            self._forget()
        key = _data_key(run)
        if shared := self._data.get(key):
            shared.begin_again(run.module.seed)
            run.data = shared
        if self._base:
            run.module.use_base(*self._base[1])
        run.module.kept_outputs = self._kept.setdefault(key, KeptOutputs())
        run.prepare()
        self._data[key] = run.data
        return run

    def identity(self, args: Sequence[str], seed: int) -> dict[str, Any]:
        """What a run of these arguments would be; of runs that differ by their seed it is found out once.

        Several threads may ask.
        """
        key = json.dumps([arg for arg in args if not arg.startswith("--seed_everything=")])
        with self._asked:
            if key not in self._identities:
                run = self.prepare(args, Path(os.devnull))
                self._identities[key] = plain(run_identity(run))
        return self._identities[key] | {"seed": seed}

    def complete(self, order: Order) -> None:
        """Make a run from its arguments to its record, and the record of the base if there is none.

        Raises:
            UserError: see `make`.
            Interrupted: see `make`.
        """
        run = self.prepare(order.args, Path(order.folder))
        record = self.make(run, dict(order.labels))
        base = Path(order.base_folder) if order.base_folder else None
        if base and not (base / "result.json").is_file():
            write_base_record(base, run, record)

    def make(self, run: FitRun, labels: dict[str, Any]) -> dict[str, Any]:
        """Train and score a prepared run; returns its record.

        Args:
            run: of `prepare`.
            labels: what the study says of it in the record.

        Raises:
            UserError: the run failed; its record says so.
            Interrupted: it was stopped and can be resumed.
            RuntimeError: the base is not what it was before the run.
        """
        run.labels = labels
        resume = self._can_resume(run)
        try:
            record = run.execute(resume=resume)
            values = singular_values(run.module.attached)
            write_json(run.run_dir / "spectrum.json", values)
            return record
        finally:
            self._take_back(run)

    def _can_resume(self, run: FitRun) -> bool:
        """Whether the run's folder has a beginning of this very run; one of another run is removed."""
        identity = plain(run_identity(run))
        if read_json_or_none(run.run_dir / IDENTITY) == identity:
            return True
        shutil.rmtree(run.run_dir, ignore_errors=True)
        write_json(run.run_dir / IDENTITY, identity)
        return False

    def _take_back(self, run: FitRun) -> None:
        """Detach the run's plan and keep the base for the next one."""
        module = run.module
        if module.model is None:
            return
        if module.is_attached:
            module.attached.detach()
        found = model_state(module.model)
        if self._base is None:
            loaded = (module.model, module.processor, module.components)
            self._base = (module.base, loaded, found)
        elif changed := changes(self._base[2], found):
            self._forget()
            raise RuntimeError(
                f"run {run.run_dir} left the base changed in {len(changed)} places, first {changed[0]}; the base is loaded "
                "again for the next run"
            )

    def _forget(self) -> None:
        self._base, self._data, self._kept = None, {}, {}


def _data_key(run: FitRun) -> str:
    """What two runs must have in common to share tokens and features."""
    evaluation = {"limit": run.evaluation.limit, "batch_size": run.evaluation.batch_size}
    return json.dumps([run.config["data"], run.config["model"]["base"], evaluation], sort_keys=True)


_OF_THE_BASE = (
    *("schema", "status", "study", "task", "base_name", "base", "data", "primary", "decoding"),
    *("total", "config", "versions", "device", "git"),
)


def write_base_record(folder: Path, run: FitRun, record: dict[str, Any]) -> None:
    """The untouched base as a row of its own: its scores and items, once a base and task.

    Args:
        folder: of the row.
        run: any finished run on that base and task.
        record: of that run.
    """
    scores = record["metrics"]["base"]
    groups = record["groups"] and dict.fromkeys(("base", "tuned"), record["groups"]["base"])
    write_items(folder / "items.jsonl.gz", sorted(run.base_items, key=lambda item: str(item["id"])))
    write_json(
        folder / "result.json",
        {key: record[key] for key in _OF_THE_BASE}
        | {"row": BASE_ROW, "seed": None, "trainable": 0, "steps": 0, "groups": groups}
        | {"metrics": {"base": scores, "tuned": scores}, "controls": None, "adapter_bytes": 0}
        | {
            "seconds": {"load": 0.0, "fit": 0.0, "score": 0.0},
            "components": {},
            "supervised_tokens": 0,
        },
    )
