"""A base recognised again: its weight files, their fingerprint, and what a record remembers of it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vlmpeft.base.components import PLANNED
from vlmpeft.base.spec import BaseSpec, base_dir
from vlmpeft.runtime.errors import UserError


def fingerprint(spec: BaseSpec) -> str:
    """A hash of the unquantized checkpoint: tensor names, shapes and sampled values.

    Reads a few hundred bytes a tensor, so it takes seconds at any size, and it does not depend on how the
    tensors are sharded over files. Widths are not part of it: they are chosen at load.
    """
    from safetensors import safe_open

    digest, entries = hashlib.sha256(), {}
    for path in weight_files(spec):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  safe_open is no mapping
                entries[name] = _tensor_digest(tensors.get_slice(name))
    if not entries:
        raise UserError(f"base {spec.path} has no safetensors weights")
    for name in sorted(entries):
        digest.update(f"{name} {entries[name]}\n".encode())
    return digest.hexdigest()[:16]


def _tensor_digest(view: Any, samples: int = 4) -> str:
    """Shape, and the first values of up to `samples` rows spread over the first dimension."""
    shape = list(view.get_shape())
    if not shape or 0 in shape:
        rows = [view[...]]
    else:
        stops = [(shape[0] - 1) * i // max(1, samples - 1) for i in range(samples)]
        rows = [view[stop : stop + 1].flatten()[:64] for stop in stops]
    values = torch.cat([row.flatten().float() for row in rows])
    return f"{shape} {hashlib.sha256(values.numpy().tobytes()).hexdigest()}"


def weight_files(spec: BaseSpec) -> list[Path]:
    """The safetensors of a base; a hub id is fetched if it is not in the cache."""
    root = Path(base_dir(spec.path))
    if not root.is_dir():
        from huggingface_hub import snapshot_download

        root = Path(
            snapshot_download(spec.path, revision=spec.revision, allow_patterns=["*.safetensors*"])
        )
    return sorted(root.glob("*.safetensors"))


def origin(spec: BaseSpec) -> dict[str, Any]:
    """What a record and an adapter remember of the base: id, revision, fingerprint, bits."""
    return {
        "id": spec.path,
        "revision": spec.revision,
        "fingerprint": fingerprint(spec),
        "bits": {name: asdict(spec.bits)[name] for name in PLANNED}
        | {"double_quant": spec.double_quant, "compute": spec.compute},
    }
