"""Tiny random models of many families, saved with real processors, to be loaded like any folder."""

from .odd import ODD
from .qwen import qwen_processor, save_qwen
from .usual import USUAL

FAMILIES = USUAL | ODD

__all__ = ["FAMILIES", "qwen_processor", "save_qwen"]
