"""What can be done to one component of a VLM: the strategies, by the names their papers use.

In: a component of a model. Out: an Attachment: what was changed, what is trained, how to undo it. `plan.py` attaches to all components.
May import: base, runtime.
"""

from vlmpeft.strategies.adalora import AdaLoRA
from vlmpeft.strategies.bottleneck import BottleneckAdapter
from vlmpeft.strategies.contract import Attachment, Component, PeftPart, StepHooks, Strategy
from vlmpeft.strategies.fixed import Frozen, Full
from vlmpeft.strategies.ia3 import IA3
from vlmpeft.strategies.lora import DoRA, LoRA
from vlmpeft.strategies.peft_any import Peft
from vlmpeft.strategies.prefix import PrefixTuning
from vlmpeft.strategies.prompt import PromptTuning
from vlmpeft.strategies.selected import BitFit, LastLayers, LayerNormTuning
from vlmpeft.strategies.vera import VeRA

__all__ = [
    "IA3",
    "AdaLoRA",
    "Attachment",
    "BitFit",
    "BottleneckAdapter",
    "Component",
    "DoRA",
    "Frozen",
    "Full",
    "LastLayers",
    "LayerNormTuning",
    "LoRA",
    "Peft",
    "PeftPart",
    "PrefixTuning",
    "PromptTuning",
    "StepHooks",
    "Strategy",
    "VeRA",
]
