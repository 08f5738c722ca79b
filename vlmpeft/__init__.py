"""vlmpeft: which PEFT method does what, on which component of a vision-language model."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> where it lives; resolved on first use, so that `import vlmpeft` costs no torch
_PUBLIC = {
    "Answer": "vlmpeft.evaluation.metrics",
    "Attachment": "vlmpeft.strategies",
    "BaseSpec": "vlmpeft.base.spec",
    "Bits": "vlmpeft.base.spec",
    "Component": "vlmpeft.strategies",
    "Components": "vlmpeft.base.components",
    "ExactMatch": "vlmpeft.evaluation.metrics",
    "Frozen": "vlmpeft.strategies",
    "Full": "vlmpeft.strategies",
    "LoRA": "vlmpeft.strategies",
    "Plan": "vlmpeft.strategies.plan",
    "Strategy": "vlmpeft.strategies",
    "TextMetric": "vlmpeft.evaluation.metrics",
    "TokenF1": "vlmpeft.evaluation.metrics",
    "UserError": "vlmpeft.runtime.errors",
    "VLMData": "vlmpeft.data.datamodule",
    "VLMModule": "vlmpeft.training.module",
    "attach": "vlmpeft.strategies.plan",
    "find_components": "vlmpeft.base.components",
    "load_adapter": "vlmpeft.adapters.loading",
    "load_base": "vlmpeft.base.loading",
    "save_adapter": "vlmpeft.adapters.saving",
}

__all__ = [*_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vlmpeft' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
