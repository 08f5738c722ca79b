"""Prompt tuning: trained tokens before the text, or among a tower's patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, Strategy
from vlmpeft.strategies.soft_tokens import insert_soft_tokens
from vlmpeft.strategies.visual_prompt import insert_visual_prompts
from vlmpeft.strategies.word_start import Start


@dataclass(frozen=True)
class PromptTuning(Strategy):
    """n trained tokens; everything else is frozen.

    On language they stand before the text, at the level of embeddings (Lester et al. 2021, arXiv:2104.08691,
    section 2): n d parameters; positions, masks and images of the real tokens stay what they were, n later. On
    vision they stand among the patches (VPT, Jia et al. 2022, arXiv:2203.12119, eq. 4 to 8), in a tower with
    (B, N, D) tokens and learned positions: shallow n d, deep n d a layer. A projector has no sequence of its own.

    Args:
        n: how many tokens.
        depth: vision only. shallow: one set goes in before the first layer and through all of them; deep: every
            layer has a set of its own, and what becomes of it is dropped after that layer.
        init: of language: vocabulary (embeddings of n words drawn from it), text, or random (N(0, 0.02)); of vision random.
        text: with init text: its tokens, repeated or cut to n.
        learning_rate: much more than of LoRA: only n vectors move.
    """

    n: int = 20
    depth: Literal["shallow", "deep"] = "shallow"
    init: Literal["auto", "vocabulary", "text", "random"] = "auto"
    text: str | None = None
    learning_rate: float = 3e-2

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"PromptTuning n={self.n}: at least 1")
        if (self.init == "text") != (self.text is not None):
            raise UserError(
                f"PromptTuning init={self.init}, text={self.text!r}: text and init=text go together"
            )

    def attach(self, component: Component) -> Attachment:
        if component.name == "language":
            if self.depth != "shallow":
                raise UserError(
                    f"PromptTuning depth={self.depth} on language has no effect: for vectors in every layer take PrefixTuning"
                )
            init = "vocabulary" if self.init == "auto" else self.init
            return insert_soft_tokens(self, component, self.n, Start(init, self.text))
        if component.name == "vision":
            if self.init not in ("auto", "random"):
                raise UserError(
                    f"PromptTuning init={self.init} on vision: patches have no vocabulary; leave it at auto"
                )
            return insert_visual_prompts(self, component, self.n, self.depth == "deep")
        raise UserError(
            f"PromptTuning on {component.name}: it maps each picture's tokens one by one and has no sequence that "
            "tokens could be added to; put it on vision or language"
        )
