"""The way into a Ray cluster. Nothing of Ray is imported before it is asked for."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError

REACH_SECONDS = 5.0


def require_ray() -> None:
    """Raise a UserError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "--launcher ray needs Ray, which is not installed: pip install 'vlmpeft[cluster]'"
        )


def connected(address: str) -> Any:
    """Ray, connected to a cluster.

    Raises:
        UserError: Ray is not installed, or nobody answers there.
    """
    require_ray()
    # what a run that asks for no GPU sees is left to the machine; Ray prints a line about it otherwise
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        _check_reachable(_place(address))
        import ray

        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        line = str(error).strip().splitlines()[0].split(". ")[0]
        raise UserError(
            f"--address {address}: no Ray cluster there ({line}); start one with `ray start --head`, and "
            "`ray start --address=HOST:6379` on the other machines"
        ) from error
    return ray


def _place(address: str) -> str:
    """HOST:PORT of an address; of auto, what Ray itself would try last."""
    if address != "auto":
        return address
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    with contextlib.suppress(OSError):
        folder = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    return address


def _check_reachable(place: str) -> None:
    """Raise an OSError if nobody listens at HOST:PORT; Ray would try for a quarter of an hour, with a line every few seconds."""
    host, _, port = place.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.rpartition("/")[2], int(port)), REACH_SECONDS).close()
