"""An adapter folder written: loadable by plain PEFT whenever PEFT can express it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vlmpeft import __version__
from vlmpeft.adapters.manifest import MANIFEST, OWN_WEIGHTS, TEMPLATE
from vlmpeft.adapters.peft_form import PEFT_WEIGHTS, PREFIX, is_expressible_in_peft, peft_config
from vlmpeft.runtime.atomic_folder import replaced_whole
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.plan import AttachedPlan


def save_adapter(
    out: Path,
    attached: AttachedPlan,
    *,
    processor: Any,
    base: dict[str, Any],
    chat_template: str | None = None,
    decoding: dict[str, Any] | None = None,
    max_pixels: int | None = None,
    card: str = "",
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write everything the plan trained to a folder; it appears whole or not at all.

    If PEFT can carry every trained tensor the folder is a PEFT adapter. If not, it has no top-level
    adapter_config.json (PEFT would load a part and answer wrongly in silence): all tensors are in our own
    file, and what PEFT can carry lies under peft_partial/.

    Args:
        out: the folder; replaced if it exists.
        attached: the plan on its model.
        processor: of the base; saved beside the weights.
        base: what `base.origin` says of the base.
        chat_template: the template trained with, if it is not the processor's own.
        decoding: token limit and end tokens that scores were made with.
        max_pixels: pictures above it were scaled down.
        card: Markdown for README.md.
        extra: more of the manifest.
    """
    try:
        with replaced_whole(out) as scratch:
            tensors = trained_tensors(attached)
            expressible = is_expressible_in_peft(attached)
            save_file(tensors, scratch / (PEFT_WEIGHTS if expressible else OWN_WEIGHTS))
            if expressible:
                _write_json(scratch / "adapter_config.json", peft_config(attached, base["id"]))
            else:
                _save_partial(scratch / "peft_partial", attached, tensors, base["id"])
            processor.save_pretrained(scratch)
            if chat_template:
                (scratch / TEMPLATE).write_text(chat_template)
            manifest = _manifest(attached, tensors, processor, base, chat_template)
            _write_json(
                scratch / MANIFEST,
                manifest | {"decoding": decoding, "max_pixels": max_pixels} | (extra or {}),
            )
            (scratch / "README.md").write_text(card)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"adapter {out} could not be saved: {error}; the checkpoints are intact"
        ) from error
    return out


def trained_tensors(attached: AttachedPlan) -> dict[str, Tensor]:
    """Every trained tensor under the name PEFT would give it."""
    return {
        PREFIX + name.replace(".default.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in attached.trainable().items()
    }


def _save_partial(
    folder: Path, attached: AttachedPlan, tensors: dict[str, Tensor], base_id: str
) -> None:
    parts = [attachment.peft for attachment in attached.attachments if attachment.peft]
    targets = tuple(f"{PREFIX}{target}." for part in parts for target in part.lora)
    lora = {name: tensor for name, tensor in tensors.items() if name.startswith(targets)}
    kinds = {(s["rslora"], s["dora"]) for part in parts for s in part.lora.values()}
    if lora and len(kinds) == 1:
        folder.mkdir()
        save_file(lora, folder / PEFT_WEIGHTS)
        _write_json(
            folder / "adapter_config.json",
            peft_config(attached, base_id) | {"modules_to_save": None},
        )


def _manifest(
    attached: AttachedPlan,
    tensors: dict[str, Tensor],
    processor: Any,
    base: dict[str, Any],
    template: str | None,
) -> dict[str, Any]:
    import peft
    import transformers

    used = template or getattr(processor, "chat_template", None) or ""
    image_processor = getattr(processor, "image_processor", None)
    return {
        "format": 1,
        "plan": attached.plan.to_dict(),
        "components": {name: list(roots) for name, roots in attached.components.roots.items()},
        "base": base,
        "chat_template_sha256": hashlib.sha256(str(used).encode()).hexdigest(),
        "image_processor_sha256": _hash_json(image_processor.to_dict() if image_processor else {}),
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "versions": {
            "vlmpeft": __version__,
            "peft": peft.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
