"""Families whose pictures become tokens of an ordinary decoder: the LLaVA line, Qwen-VL, SmolVLM, Gemma, InternVL."""

from .common import Family
from .qwen import save_qwen

USUAL = {"qwen2_5_vl": Family(save_qwen)}
