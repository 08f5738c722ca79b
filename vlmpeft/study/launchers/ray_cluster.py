"""Each run on some node of a Ray cluster (Moritz et al. 2018, arXiv:1712.05889); what it leaves comes back to this machine."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import Interrupted, UserError
from vlmpeft.study.launchers.node_run import Look, NodeRun
from vlmpeft.study.launchers.parcel import CHECKPOINT, pack, parts, unpack
from vlmpeft.study.launchers.ray_connection import connected
from vlmpeft.study.launchers.subprocesses import INTERRUPTED, check_ended
from vlmpeft.study.order import Order

POLL_SECONDS = 0.5
FETCH_SECONDS, FETCH_SHARE = (
    5.0,
    0.05,
)  # checkpoints are fetched this often, and for this share of the time at most
MOST_LOSSES = 3  # of a run, without a new checkpoint in between


class _Lost(Exception):
    """The node of a run, or the process that watched over the run there, is no more."""


class RayCluster:
    """Makes runs on the nodes of a cluster, each by a process of its own; any number of threads may ask for one.

    Args:
        address: of the cluster, as `ray.init` takes it; auto is the one that this machine belongs to.
        note: told which run lost its node.
        cpus_per_run: cores that each run has for itself.
        gpus_per_run: the same of GPUs, or a part of one; None is one if the cluster has any.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or none of its nodes has room for a run.
    """

    def __init__(
        self,
        address: str,
        note: Callable[[str], None],
        cpus_per_run: float = 1.0,
        gpus_per_run: float | None = None,
    ):
        self.ray, self.note = connected(address), note
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if gpus_per_run is None:
            gpus_per_run = float(any(node.get("GPU") for node in nodes))
        self.options = {"num_cpus": cpus_per_run, "num_gpus": gpus_per_run}
        self.room = sum(_room(node, cpus_per_run, gpus_per_run) for node in nodes)
        self.runs_on: Counter[str] = Counter()  # node -> runs that it finished
        self._stopping, self._bases = threading.Event(), threading.Lock()
        if not self.room:
            self.close()
            raise UserError(
                f"no node of the Ray cluster {address} has {cpus_per_run:g} CPUs and {gpus_per_run:g} GPUs; give less with "
                "--cpus_per_run and --gpus_per_run"
            )

    def stop(self) -> None:
        """Ask every run to save a checkpoint and to end; `make` raises Interrupted then."""
        self._stopping.set()

    def close(self) -> None:
        """Leave the cluster; what is still there of this process ends."""
        self.ray.shutdown()

    def make(self, order: Order) -> None:
        """Make a run on a node that has room; on another one from the last checkpoint here, if that node is lost.

        Raises:
            Interrupted: `stop` was called; the run's last checkpoint is here, if its node was there to give it.
            UserError: the run failed, or lost its node too often.
        """
        losses, path = 0, Path(order.folder) / CHECKPOINT
        while True:
            self._check_goes_on()
            before = _time_of(path)
            try:
                return self._make_on_a_node(order)
            except _Lost as error:
                losses = losses + 1 if _time_of(path) == before else 1
                if losses == MOST_LOSSES:
                    raise UserError(f"its node was lost {losses} times; {error}") from error
                since = "its last checkpoint" if path.exists() else "its beginning"
                self.note(f"{order.name}: {error}; it goes on elsewhere from {since}")

    def _make_on_a_node(self, order: Order) -> None:
        with self._placed() as node, _place_of_errors(node):
            look = self._follow(node, order, self._start(node, order))
            node.ask("remove")
            if look.code == INTERRUPTED and not self._stopping.is_set():
                raise _Lost(f"the run was told to end on node {node.name}")
            check_ended(look.code or 0, look.lines)
            self.runs_on[node.name] += 1

    @contextlib.contextmanager
    def _placed(self) -> Iterator[_Node]:
        """A node with room for a run, as soon as there is one."""
        options = self.options | {"scheduling_strategy": "SPREAD"}
        actor = self.ray.remote(NodeRun).options(**options).remote()
        try:
            with _place_of_errors(None):
                yield _Node(self.ray, actor, self._await(actor.node.remote()))
        finally:
            self.ray.kill(actor)  # and with it the run, if it still goes on

    def _await(self, answer: Any) -> Any:
        while not self.ray.wait([answer], timeout=POLL_SECONDS)[0]:
            self._check_goes_on()
        self._check_goes_on()
        return self.ray.get(answer)

    def _check_goes_on(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("stopped before the run began")

    def _start(self, node: _Node, order: Order) -> Look:
        """Send what there is of the run, and start it."""
        folder = Path(order.folder)
        if (folder / CHECKPOINT).is_file():
            with tempfile.TemporaryDirectory() as scratch:
                parcel = Path(scratch) / "parcel.tar"
                pack(folder, parcel)
                for part in parts(parcel):
                    node.ask("receive", part)
        if order.base_folder and (Path(order.base_folder) / "result.json").is_file():
            order = replace(order, base_folder=None)
        return node.ask("start", asdict(order), str(Path.cwd()))

    def _follow(self, node: _Node, order: Order, look: Look) -> Look:
        """Fetch each new checkpoint of a run, and everything at its end."""
        known, due, is_told = look.checkpoint, time.monotonic(), False
        while look.code is None:
            time.sleep(POLL_SECONDS)
            if self._stopping.is_set() and not is_told:
                node.ask("stop")
                is_told = True
            look = node.ask("look")
            if look.code is None and look.checkpoint != known and time.monotonic() >= due:
                began, known = time.monotonic(), look.checkpoint
                self._fetch(node, "run", Path(order.folder))
                took = time.monotonic() - began
                due = time.monotonic() + max(FETCH_SECONDS, took / FETCH_SHARE)
        self._fetch(node, "run", Path(order.folder))
        if look.code == 0 and order.base_folder:
            self._fetch_base(node, Path(order.base_folder))
        return look

    def _fetch_base(self, node: _Node, folder: Path) -> None:
        with self._bases:
            if not (folder / "result.json").is_file():
                self._fetch(node, "base", folder)

    def _fetch(self, node: _Node, what: str, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        size = node.ask("pack", what)
        with tempfile.NamedTemporaryFile(dir=folder.parent, prefix=".parcel-") as file:
            while file.tell() < size:
                file.write(node.ask("part", file.tell()))
            file.flush()
            unpack(Path(file.name), folder)


class _Node:
    """A `NodeRun`, asked from here."""

    def __init__(self, ray: Any, actor: Any, name: str):
        self.ray, self.actor, self.name = ray, actor, name

    def ask(self, method: str, *args: Any) -> Any:
        return self.ray.get(getattr(self.actor, method).remote(*args))


@contextlib.contextmanager
def _place_of_errors(node: _Node | None) -> Iterator[None]:
    """Turns what Ray raises into _Lost if the node is, else into a UserError that names the node."""
    from ray.exceptions import RayActorError, RayError, RayTaskError

    place = f"node {node.name}" if node else "a node of the cluster"
    try:
        yield
    except RayTaskError as error:
        raise UserError(f"{place}: {type(error.cause).__name__}: {error.cause}") from error
    except RayError as error:
        if isinstance(error, RayActorError) and error.actor_init_failed:
            line = str(error).strip().splitlines()[-1]
            raise UserError(f"{place} cannot make runs: {line}") from error
        raise _Lost(f"{place} was lost ({type(error).__name__})") from error


def _room(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many runs a node can make at once."""
    needs = [(node.get(name, 0.0), need) for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
    return min((int(has / need + 1e-9) for has, need in needs), default=0)


def _time_of(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
