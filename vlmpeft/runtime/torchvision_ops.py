"""Makes torchvision importable beside a CPU-only torch, whose stock wheel lacks its operators."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_library = None


def declare_torchvision_ops() -> None:
    """Declare the two operators that torchvision's Python side looks up when it is imported.

    The stock torchvision wheel is linked against CUDA: beside a CPU-only torch its C library does not
    load, `torchvision::nms` does not exist, and every import of transformers' image processors dies with
    a RuntimeError. None of them calls the operators, so a declaration is enough. Does nothing when torch
    has CUDA, when torchvision is absent, or when its C library loads. Call it before anything imports
    torchvision.
    """
    global _library  # the declaration lasts as long as this object lives
    spec = importlib.util.find_spec("torchvision")
    if _library is not None or spec is None or spec.origin is None:
        return
    import torch

    if torch.version.cuda or _c_library_loads(Path(spec.origin).parent):
        return
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _c_library_loads(package_dir: Path) -> bool:
    import torch

    try:
        for library in package_dir.glob("_C*.so"):
            torch.ops.load_library(library)
    except (OSError, RuntimeError):
        return False
    return hasattr(torch.ops.torchvision, "nms")
