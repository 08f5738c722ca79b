"""The tensors of an adapter folder: safetensors that hold what the manifest lists, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from vlmpeft.adapters.manifest import MANIFEST, OWN_WEIGHTS
from vlmpeft.adapters.peft_form import PEFT_WEIGHTS
from vlmpeft.runtime.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
Shapes = Mapping[str, tuple[int, ...]]


def read_tensors(folder: str, shapes: Shapes) -> dict[str, Tensor]:
    """Every tensor of an adapter folder, on the CPU, by the name PEFT would give it.

    Args:
        folder: the adapter.
        shapes: what its manifest lists.

    Raises:
        UserError: no weights, broken ones, other tensors than the manifest lists, a NaN or an infinity.
    """
    path = weights_file(Path(folder))
    try:
        tensors = load_file(path)
    except Exception as error:
        raise UserError(f"adapter {folder}: {path.name} is broken: {error}") from error
    _check_inventory(folder, path.name, tensors, shapes)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            kind = "a NaN" if tensor.isnan().any() else "an infinity"
            raise UserError(
                f"adapter {folder}: {name} in {path.name} holds {kind}; take an earlier checkpoint of the run, or train again "
                "with a lower learning rate"
            )
    return tensors


def _check_inventory(folder: str, file: str, tensors: Mapping[str, Tensor], listed: Shapes) -> None:
    if wrong := listed.keys() ^ tensors.keys():
        kind = "is not in it" if min(wrong) in listed else "is in it alone"
        raise UserError(
            f"adapter {folder}: {file} does not fit the plan in {MANIFEST}: {len(wrong)} tensors, e.g. {min(wrong)} "
            f"{kind}; copy or train the adapter again"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != listed[name]:
            raise UserError(
                f"adapter {folder}: {name} has shape {list(tensor.shape)} in {file}, and {MANIFEST} says {list(listed[name])}; "
                "copy or train the adapter again"
            )


def weights_file(folder: Path) -> Path:
    """The safetensors of an adapter folder.

    Raises:
        UserError: there is none; a pickle in its place is named and never loaded.
    """
    path = next((folder / n for n in (PEFT_WEIGHTS, OWN_WEIGHTS) if (folder / n).is_file()), None)
    if path is not None:
        return path
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"adapter {folder} has {pickles[0]}, a pickle, where {PEFT_WEIGHTS} is due; it was not loaded, since a pickle "
            "can run code: save the tensors as safetensors"
        )
    raise UserError(
        f"adapter {folder} has no weights ({PEFT_WEIGHTS} or {OWN_WEIGHTS}): half written or half copied; copy or train it again"
    )
