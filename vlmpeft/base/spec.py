"""Which pretrained VLM is meant, and how wide its weights are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import torch

from vlmpeft.runtime.errors import UserError

Width = Literal["auto", "fp32", "bf16", "fp16", "nf4", "fp4", "int8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTIZED = ("nf4", "fp4", "int8")
NUM_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "nf4": 4, "fp4": 4}


@dataclass(frozen=True)
class Bits:
    """How wide the base's weights are, by component.

    Args:
        vision: fp32, bf16, fp16, nf4, fp4, int8; auto is fp32 on a CPU and bf16 on a GPU.
        projector: the same choices; a fully trained projector must be 16 or 32 bit.
        language: the same choices. 4-bit widths use blocks of 64 (QLoRA, section 3).
    """

    vision: Width = "auto"
    projector: Width = "auto"
    language: Width = "nf4"


@dataclass(frozen=True)
class BaseSpec:
    """Which pretrained VLM, and how it is held in memory.

    Args:
        path: a local folder, a hub id, or `tiny`, the embedded base.
        bits: width of each component's weights.
        double_quant: also quantize the 4-bit blocks' scales, 4.127 instead of 4.5 bits a weight.
        compute: in what 4-bit layers multiply; auto is fp32 on a CPU and bf16 on a GPU.
        revision: branch, tag or commit of a hub id.
    """

    path: str = "tiny"
    bits: Bits = Bits()
    double_quant: bool = True
    compute: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    revision: str | None = None

    def __post_init__(self) -> None:
        four = [name for name, width in asdict(self.bits).items() if NUM_BITS.get(width) == 4]
        for knob, usual in (("double_quant", True), ("compute", "auto")):
            value = getattr(self, knob)
            if value != usual and not four:
                raise UserError(
                    f"model.base.{knob}={value} has no effect: no component is in 4 bits (nf4, fp4); leave it out or set "
                    "model.base.bits"
                )


def base_dir(path: str) -> str:
    """Resolve `tiny` to the folder inside the package; leave folders and hub ids as they are.

    Raises:
        UserError: a path that is neither a folder nor could be a hub id.
    """
    if path == "tiny":
        return str(resources.files("vlmpeft") / "base" / "tiny")
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise UserError(f"base {path} has no config.json: is it a Hugging Face model folder?")
        return path
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(f"base {path} is not a folder; give a folder, a hub id (org/name) or tiny")
    return path


def resolve_bits(bits: Bits, device: torch.device) -> dict[str, str]:
    """Component -> width, with `auto` decided by the device.

    Raises:
        UserError: a width the device cannot hold.
    """
    auto = "fp32" if device.type == "cpu" else "bf16"
    widths = {name: auto if width == "auto" else width for name, width in asdict(bits).items()}
    for name, width in widths.items():
        if reason := _impossible(width, device):
            raise UserError(f"model.base.bits.{name}={width} on {device.type}: {reason}")
    return widths


def _impossible(width: str, device: torch.device) -> str:
    """Why a device cannot have weights of a width; empty if it can."""
    if width in QUANTIZED and device.type not in ("cpu", "cuda", "xpu"):
        return "bitsandbytes has no such layers there; take bf16 or fp32"
    if width == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return "this GPU has no bf16; take fp16 or fp32"
    return ""
