"""Code that a folder from elsewhere brings: it is never run, and a folder that needs it is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError

CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
)
PEFT_CONFIG = "adapter_config.json"
IGNORE = "VLMPEFT_OWN_CODE"  # with the value ignore: auto_map is left out of account
_CODE = "is code of the folder's own, and vlmpeft runs none of it"
# what of a config transformers, timm or kernels would import, unpickle or fetch a program by
_REASONS = {
    "auto_map": f"{_CODE}; if the classes of transformers read this folder as it is, set {IGNORE}=ignore",
    "custom_generate": f"{_CODE}; remove it",
    "checkpoint_path": "is read by timm, pickles included; remove it",
}


def refuse_own_code(folder: str | Path, what: str) -> None:
    """Look through a folder's configs for whatever would run code that comes with it.

    Args:
        folder: of a base or an adapter.
        what: how messages call it.

    Raises:
        UserError: the file, the key and its value, and what to do.
    """
    for name in CONFIGS:
        path = Path(folder) / name
        if path.is_file():
            for place, key, value in _entries(_read(path, what), ""):
                if reason := _reason(key, value):
                    shown = json.dumps(value)[:80]
                    raise UserError(f"{what}: {place} of {name}, {shown}, {reason}")


def refuse_adapter(folder: str | Path, what: str) -> None:
    """Refuse a base that carries a PEFT adapter: transformers would put it on without a word.

    Raises:
        UserError: it has an adapter_config.json.
    """
    if (Path(folder) / PEFT_CONFIG).is_file():
        raise UserError(
            f"{what} has a {PEFT_CONFIG}: it is a PEFT adapter, or a base with one on it; give the base alone"
        )


def _read(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{what}: {path.name} is not valid JSON ({error})") from error


def _entries(value: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """(place, key, value) of every key at any depth."""
    if isinstance(value, dict):
        for key, entry in value.items():
            here = f"{place}.{key}" if place else key
            yield here, key, entry
            yield from _entries(entry, here)
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _entries(entry, f"{place}.{number}")


def _reason(key: str, value: Any) -> str:
    """Why a key may not have its value; empty if it may."""
    if not value or (key == "auto_map" and os.environ.get(IGNORE) == "ignore"):
        return ""
    if key.endswith("_implementation") and isinstance(value, str) and "/" in value:
        return "is a kernel from the hub, a program; remove it"
    return _REASONS.get(key, "")
