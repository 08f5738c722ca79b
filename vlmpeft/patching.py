"""dW added to the tensors in a checkpoint's files, where they lie: memory is that of one tensor, whatever the model's size."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vlmpeft.base import BaseSpec, weight_files
from vlmpeft.errors import GateFailed, UserError
from vlmpeft.strategies.low_rank import Delta, dense

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE = 2**24  # bytes compared at once


@dataclass(frozen=True)
class Place:
    """Where a checkpoint keeps a tensor.

    Args:
        file: its name.
        key: the tensor's name in it.
        start: of its first byte, from the file's beginning.
        dtype: stored.
        shape: stored.
    """

    file: str
    key: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.dtype.itemsize * torch.Size(self.shape).numel()


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


def find_places(spec: BaseSpec, model: Any) -> dict[str, Place]:
    """Parameter -> its place in the base's safetensors, under the names transformers loads them by.

    Args:
        spec: the base.
        model: of it; on the meta device will do.

    Raises:
        UserError: there are no safetensors.
    """
    files = weight_files(spec)
    if not files:
        raise UserError(f"base {spec.path} has no safetensors weights to merge into")
    stored = {key: place for path in files for key, place in _read_header(path).items()}
    names = _parameters_by_key(model, stored)
    return _by_parameter(
        model, {names[key]: place for key, place in stored.items() if key in names}
    )


def _read_header(path: Path) -> dict[str, Place]:
    """Tensor -> place; the layout is that of safetensors: length (8 bytes, little endian), JSON, data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return {
        key: Place(
            path.name,
            key,
            8 + length + entry["data_offsets"][0],
            _TYPES.get(entry["dtype"], torch.int8),
            tuple(entry["shape"]),
        )
        for key, entry in entries.items()
    }


def _parameters_by_key(model: Any, keys: Iterable[str]) -> dict[str, str]:
    """Key of a checkpoint -> parameter, of those that transformers stores as they are but for their names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    own, prefix = model.state_dict(), model.base_model_prefix
    found = {}
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, own)
        if name not in own and key in own:
            name, pattern = rename_source_key(key, [], [], prefix, own)
        if pattern is None and name in own:
            found[key] = name
    return found


def _by_parameter(model: Any, places: Mapping[str, Place]) -> dict[str, Place]:
    """By the name `named_parameters` gives; without tied weights that are stored more than once."""
    every = dict(model.named_parameters(remove_duplicate=False))
    stored = Counter(id(every[name]) for name in places if name in every)
    by_id = {id(every[name]): place for name, place in places.items() if name in every}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if stored[id(p)] == 1}


def check_places(places: Mapping[str, Place], shapes: Mapping[str, Any]) -> None:
    """Every dW has a tensor of its shape to be added to.

    Args:
        places: of the base.
        shapes: parameter -> shape of its dW.

    Raises:
        UserError: the first that has none, and another way.
    """
    for name, shape in shapes.items():
        place = places.get(name)
        if place is None:
            raise UserError(
                f"{name} is not stored as one tensor in the base's files (fused, split, or tied to another), so it cannot be "
                "changed in place; --to adapter, then export --to merged, which loads the model"
            )
        if place.shape != tuple(shape):
            raise UserError(
                f"{name} is {place.shape} in the base's files and {tuple(shape)} in the adapters: they belong to another base"
            )
        if place.dtype not in _TYPES.values():
            raise UserError(
                f"{name} is stored quantized in the base's files; give the base it was made from: --base PATH"
            )


def copy_weights(spec: BaseSpec, folder: Path) -> None:
    """The base's weight files, their index and its configs.

    Args:
        spec: the base.
        folder: exists.
    """
    files = weight_files(spec)
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
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
    for path in weight_files(spec):
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
