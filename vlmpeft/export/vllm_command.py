"""How vLLM is started for an exported adapter, and what it will not do of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlmpeft.adapters.adapter import Manifest
from vlmpeft.adapters.peft_form import PEFT_WEIGHTS, PREFIX
from vlmpeft.base.components import PLANNED
from vlmpeft.base.spec import QUANTIZED, base_dir
from vlmpeft.preflight.servability import max_lora_rank


def lora_targets(written: Mapping[str, Tensor]) -> list[str]:
    """Full names of the modules that have factors."""
    ending = ".lora_A.weight"
    return [n.removeprefix(PREFIX).removesuffix(ending) for n in written if n.endswith(ending)]


def serving(
    folder: Path,
    out: Path,
    written: Mapping[str, Tensor],
    parts: Collection[str],
    base: str,
    manifest: Manifest,
) -> dict[str, Any]:
    """The command line, and what is ignored.

    The adapter is called NAME@HASH after its weights: vLLM keeps an adapter that was loaded under a name when the folder
    behind the name changes (vllm-project/vllm#42125).

    Args:
        folder: where the adapter is now.
        out: where it will be.
        written: its tensors.
        parts: components that have a LoRA.
        base: path or id of the base.
        manifest: of the adapter.
    """
    most = max_lora_rank(
        max(t.shape[0] for n, t in written.items() if n.endswith(".lora_A.weight"))
    )
    digest = hashlib.sha256((folder / PEFT_WEIGHTS).read_bytes()).hexdigest()[:8]
    flags = [
        f"vllm serve {base_dir(base)} --enable-lora",
        f"--lora-modules {out.name}@{digest}={out.absolute()}",
        f"--max-lora-rank {most}",
    ]
    if {*parts} - {"language"}:
        flags.append("--enable-tower-connector-lora")
    if template := _own_template(folder, out, base):
        flags.append(f"--chat-template {template}")
    return {
        "serve": " ".join(flags),
        "max_lora_rank": most,
        "ignored": _ignored(parts, manifest),
    }


def _own_template(folder: Path, out: Path, base: str) -> str:
    """The adapter's chat template, if it is not the base's, which vLLM takes."""
    of_base, own = Path(base_dir(base)) / "chat_template.jinja", folder / "chat_template.jinja"
    if not own.is_file() or (of_base.is_file() and of_base.read_text() == own.read_text()):
        return ""
    return str(out.absolute() / own.name)


def _ignored(parts: Collection[str], manifest: Manifest) -> list[str]:
    found = [
        f"LoRA on {name} is ignored without --enable-tower-connector-lora, and where vLLM has no such support for the "
        "model (vllm-project/vllm#27916, #31479)"
        for name in sorted({*parts} - {"language"})
    ]
    bits = manifest.base.bits
    quantized = [f"{name} {bits[name]}" for name in PLANNED if bits[name] in QUANTIZED]
    if quantized:
        found.append(
            f"the base was quantized in training ({', '.join(quantized)}); vLLM serves the checkpoint's own weights unless told "
            "otherwise"
        )
    if pixels := manifest.max_pixels:
        found.append(f"the pixel limit {pixels} of training: scale pictures down before sending")
    return found
