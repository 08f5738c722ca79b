"""What can be done to one component of a VLM: the strategies, by the names their papers use."""

from vlmpeft.strategies.base import Attachment, Component, PeftPart, Strategy
from vlmpeft.strategies.fixed import Frozen, Full
from vlmpeft.strategies.lora import LoRA

__all__ = ["Attachment", "Component", "Frozen", "Full", "LoRA", "PeftPart", "Strategy"]
