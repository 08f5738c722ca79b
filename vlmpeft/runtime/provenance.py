"""Where a result comes from and what it took: versions, the commit, hashes, memory, bytes."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from vlmpeft import __version__

PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes", "torchmetrics", "pillow")


def semantic_hash(value: Any) -> str:
    """A hash of plain data that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Installed version of every package a result may depend on."""
    found = {"python": platform.python_version(), "vlmpeft": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit and cleanliness of the working copy this runs in, or None outside of one."""
    command = ["git", "-C", str(folder or Path.cwd())]
    try:
        commit = subprocess.run(
            [*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            [*command, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def peak_memory_bytes(on_gpu: bool) -> int:
    """Most memory this process held: of the GPU if it used one, else resident."""
    if on_gpu:
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def folder_bytes(folder: Path) -> int:
    """Size of every file below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
