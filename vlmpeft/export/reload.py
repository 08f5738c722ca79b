"""What was written to a folder, loaded again as others load it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vlmpeft.adapters.adapter import saved_processor
from vlmpeft.adapters.peft_form import PEFT_WEIGHTS
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, base_dir
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.equivalence import encode_items, same_encoding
from vlmpeft.evaluation.tower_cache import Sample
from vlmpeft.runtime.errors import GateFailed


def load_checkpoint(path: str, revision: str | None = None, device: Any = "cpu") -> Any:
    """A model as its checkpoint says, in its own dtype, by transformers alone.

    Raises:
        GateFailed: weights are missing or of another shape.
    """
    from transformers import AutoModelForImageTextToText

    where = base_dir(path)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            where,
            revision=revision or "main",
            dtype="auto",
            device_map={"": device},
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise GateFailed(
            f"checkpoint {path} cannot be loaded: {error}; nothing was written"
        ) from error
    model, info = loaded
    if wrong := sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]})):
        raise GateFailed(
            f"checkpoint {path} lacks {len(wrong)} tensors, e.g. {wrong[0]}; nothing was written"
        )
    return model.eval()


def load_in_peft(folder: Path, spec: BaseSpec, device: torch.device) -> Any:
    """A fresh base with an adapter folder on it, by `PeftModel.from_pretrained` alone.

    Args:
        folder: what was written.
        spec: the base, in the widths the adapter was trained on.
        device: where the model is to be.

    Raises:
        GateFailed: PEFT does not load it, or leaves out tensors, which it does in silence.
    """
    from peft import PeftModel

    model, _, _ = load_base(spec, device)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            loaded: Any = PeftModel.from_pretrained(model, folder, torch_device=str(device))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UserWarning) as error:
        raise GateFailed(
            f"plain PEFT cannot load what was written: {error}; nothing was written"
        ) from error
    places = {re.sub(r"(\.modules_to_save)?\.default\b", "", name) for name in loaded.state_dict()}
    with safe_open(folder / PEFT_WEIGHTS, framework="pt") as tensors:
        left_out = sorted({*tensors.keys()} - places)
    if left_out:
        raise GateFailed(
            f"plain PEFT loads what was written without {len(left_out)} of its tensors, e.g. {left_out[0]}; nothing was written"
        )
    return loaded.eval()


def encode_again(samples: Sequence[Sample], folder: Path, max_pixels: int | None) -> list[Sample]:
    """The same items, by the processor that was written.

    Args:
        samples: as the adapter's own processor encodes them.
        folder: what was written.
        max_pixels: pictures above it are scaled down.

    Raises:
        GateFailed: it makes other tokens or pictures of them.
    """
    encoder = Encoder(saved_processor(folder), None, max_pixels)
    again = encode_items([item for item, _ in samples], encoder)
    if not same_encoding(again, samples):
        raise GateFailed(
            "the processor that was written encodes samples otherwise; nothing was written"
        )
    return again
