"""Where prompts and prefixes start: from words of the vocabulary, from a text, or from noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlmpeft.runtime.errors import UserError


@dataclass(frozen=True)
class Start:
    """How trained vectors begin.

    Args:
        init: vocabulary, text or random.
        text: with init text.
    """

    init: Literal["vocabulary", "text", "random"]
    text: str | None = None

    def word_ids(self, model: Any, n: int) -> Tensor | None:
        """(n,) token ids to begin from; None if they begin from noise.

        Raises:
            UserError: a text that has no token, or whose tokenizer is not beside the base.
        """
        if self.init == "random":
            return None
        if self.init == "vocabulary":
            return torch.randint(len(model.get_input_embeddings().weight), (n,))
        ids = self._text_ids(model)
        return ids.repeat(-(-n // len(ids)))[:n]

    def _text_ids(self, model: Any) -> Tensor:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(model.name_or_path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"init=text needs the base's tokenizer, which is not at {model.name_or_path!r}; "
                "take init=vocabulary"
            ) from error
        ids = tokenizer(self.text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        if not len(ids):
            raise UserError(f"text={self.text!r} has no token to begin from")
        return ids
