"""dW added to the tensors in a checkpoint's files, where they lie: memory is that of one tensor, whatever the model's size."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vlmpeft.base.spec import BaseSpec
from vlmpeft.export.tensor_locations import INDEX, Place, checkpoint_files
from vlmpeft.runtime.errors import GateFailed
from vlmpeft.strategies.low_rank import Delta, dense

_PIECE = 2**24  # bytes compared at once


@dataclass
class Patched:
    """What was changed in a copy of a checkpoint.

    Args:
        places: parameter -> where.
        change: sum of squares of dW.
        rounding: sum of squares of what storing W + dW in W's own type lost.
    """

    places: dict[str, Place] = field(default_factory=dict)
    change: float = 0.0
    rounding: float = 0.0

    @property
    def lost(self) -> float:
        """Norm of the rounding, as a share of the norm of dW."""
        return (self.rounding / self.change) ** 0.5 if self.change else 0.0


def copy_weights(spec: BaseSpec, folder: Path) -> None:
    """The base's weight files, their index and its configs.

    Args:
        spec: the base.
        folder: exists.
    """
    files = checkpoint_files(spec)
    for name in ("config.json", "generation_config.json", INDEX):
        if (files[0].parent / name).is_file():
            files.append(files[0].parent / name)
    for path in files:
        shutil.copyfile(path, folder / path.name)


@torch.no_grad()
def patch(
    folder: Path, places: Mapping[str, Place], deltas: Iterable[tuple[str, Delta]]
) -> Patched:
    """Write W + dW over W, summed in fp64 and rounded to the type that is stored, tensor by tensor.

    Args:
        folder: a copy of the base's files.
        places: parameter -> place.
        deltas: (parameter, dW) ...
    """
    done = Patched()
    for name, delta in deltas:
        place, change = places[name], dense(delta)
        exact = _read(folder, place).double() + change.cpu()
        stored = exact.to(place.dtype)
        _write(folder, place, stored)
        done.places[name] = place
        done.change += _squares(change)
        done.rounding += _squares(exact.sub_(stored))
        del exact, stored, change  # before the next one is made
    return done


def _read(folder: Path, place: Place) -> Tensor:
    with safe_open(folder / place.file, framework="pt") as tensors:
        return tensors.get_tensor(place.key)


def _write(folder: Path, place: Place, values: Tensor) -> None:
    """Over what is there, then read as everybody will read it."""
    with (folder / place.file).open("r+b") as file:
        file.seek(place.start)
        file.write(values.contiguous().flatten().view(torch.uint8).numpy().data)
    if not torch.equal(_read(folder, place), values):
        raise GateFailed(f"{place.key} was not written as it was meant; nothing was written")


def _squares(values: Tensor) -> float:
    return sum(float(part.double().square().sum()) for part in values.flatten().split(2**22))


def check_untouched(spec: BaseSpec, folder: Path, patched: Patched) -> int:
    """Compare a patched copy with its base, byte by byte outside of what was patched; returns the bytes compared.

    Raises:
        GateFailed: a byte differs that should not.
    """
    compared = 0
    for path in checkpoint_files(spec):
        here = sorted((p.start, p.stop) for p in patched.places.values() if p.file == path.name)
        position, size = 0, path.stat().st_size
        for start, stop in [*here, (size, size)]:
            _check_equal(path, folder / path.name, position, start)
            compared += start - position
            position = stop
    return compared


def _check_equal(first: Path, second: Path, start: int, stop: int) -> None:
    with first.open("rb") as a, second.open("rb") as b:
        a.seek(start)
        b.seek(start)
        while start < stop:
            size = min(_PIECE, stop - start)
            if a.read(size) != b.read(size):
                raise GateFailed(
                    f"{second.name} differs from the base between bytes {start} and {start + size}, where nothing was merged; "
                    "nothing was written"
                )
            start += size
