"""What the tiny random models of every family share: a tokenizer, a template, weights that let pictures through."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML_WITH = (
    "{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n"
    "{{% for p in m['content'] %}}{{% if p['type'] == 'image' %}}{image}"
    "{{% else %}}{{{{ p['text'] }}}}{{% endif %}}{{% endfor %}}<|im_end|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)


@dataclass(frozen=True)
class Family:
    """A tiny random model of one architecture.

    Args:
        save: writes a folder that `load_base` takes: config, random weights, real processor.
        cannot: names of checks (`checks.CHECKS`) that do not pass; a test asserts that it is exactly these.
    """

    save: Callable[[Path], object]
    cannot: frozenset[str] = frozenset()


def byte_tokenizer(*special: str, **kwargs: object) -> PreTrainedTokenizerFast:
    """Every byte a token, ChatML's marks, and the special tokens a family needs."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(alphabet))}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *special],
        **kwargs,
    )


def redraw(model, std=0.2):
    """Default random weights let almost no image signal through."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    return model


def save(folder, model, processor):
    """Write the folder that `load_base` takes."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
