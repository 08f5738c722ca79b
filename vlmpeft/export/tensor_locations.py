"""Where a checkpoint's files keep the tensors of a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmpeft.base.fingerprint import weight_files
from vlmpeft.base.spec import BaseSpec
from vlmpeft.runtime import private_apis
from vlmpeft.runtime.errors import UserError

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INDEX = "model.safetensors.index.json"


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


def find_places(spec: BaseSpec, model: Any) -> dict[str, Place]:
    """Parameter -> its place in the base's safetensors, under the names transformers loads them by.

    Args:
        spec: the base.
        model: of it; on the meta device will do.

    Raises:
        UserError: there are no safetensors.
    """
    files = checkpoint_files(spec)
    if not files:
        raise UserError(f"base {spec.path} has no safetensors weights to merge into")
    stored = {key: place for path in files for key, place in _read_header(path).items()}
    names = _parameters_by_key(model, stored)
    return _by_parameter(
        model, {names[key]: place for key, place in stored.items() if key in names}
    )


def checkpoint_files(spec: BaseSpec) -> list[Path]:
    """The safetensors that transformers loads: those of the index, or model.safetensors; not the same weights in another form."""
    files = {path.name: path for path in weight_files(spec)}
    if not files:
        return []
    index = next(iter(files.values())).parent / INDEX
    if "model.safetensors" in files:
        return [files["model.safetensors"]]
    if index.is_file():
        named = json.loads(index.read_text())["weight_map"].values()
        return [files[name] for name in sorted({*named}) if name in files]
    return list(files.values())


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
    rename_source_key = private_apis.RENAME_KEY.get()
    transforms = private_apis.CONVERSION_MAPPING.get()(model)
    renamings = [t for t in transforms if isinstance(t, private_apis.WEIGHT_RENAMING.get())]
    converters = [t for t in transforms if isinstance(t, private_apis.WEIGHT_CONVERTER.get())]
    own, prefix = model.state_dict(), model.base_model_prefix
    found = {}
    for key in sorted(keys, key=private_apis.NATURAL_KEY.get()):
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
