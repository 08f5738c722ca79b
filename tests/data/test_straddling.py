"""A token that begins before an answer and ends inside it is the answer's: the model has to write it.

The vocabulary is assembled here, so every id is known by hand.
"""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from vlmpeft.base.loading import load_processor
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.batches.encode import IGNORE, Encoder

from .test_encode import talk

END, IMAGE = 0, 1
TOKENS = ["<end>", "<image>", "u", "h", "i", "a", "r", "e", "d", ":", "Ġ", "re", "red"]
U, H, I, A, COLON, BLANK, RED = 2, 3, 4, 5, 9, 10, 12  # noqa: E741  ids by the name of the token
LONGER = ["Ġred", ":Ġred"]  # ids 13 and 14, where a vocabulary has them
BLANK_RED, COLON_BLANK_RED = 13, 14
MERGES = [("r", "e"), ("re", "d")]
LONGER_MERGES = [("Ġ", "red"), (":", "Ġred")]
QUESTION = [U, COLON, H, I, BLANK, A]  # "u:hi a"


def tokenizer_of(longer, trimmed):
    """A byte-level BPE that knows `longer` of the two long tokens.

    Args:
        longer: 0: neither, 1: " red", 2: ": red" too.
        trimmed: whether offsets leave out the blank that a token begins with, as RoBERTa's do.
    """
    ids = {token: i for i, token in enumerate(TOKENS + LONGER[:longer])}
    bpe = Tokenizer(models.BPE(ids, MERGES + LONGER_MERGES[:longer]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<end>", additional_special_tokens=["<image>"]
    )


def encoder_of(prompt_end, longer, trimmed):
    """An encoder whose conversations read "u:hi a: red<end>" whatever the generation prompt ends in."""
    pictures = load_processor(BaseSpec()).image_processor
    processor = LlavaProcessor(pictures, tokenizer_of(longer, trimmed), patch_size=8)
    template = (
        "{%- for m in messages -%}{%- if m['role'] == 'user' -%}u:{{ m['content'][0]['text'] }}"
        "{%- else -%}{{ ' a: ' }}{{ m['content'][0]['text'] }}<end>{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '" + prompt_end + "' }}{%- endif -%}"
    )
    return Encoder(processor, template)


# what the generation prompt ends in, how many long tokens there are -> ids after "u:hi a", how many are prompt
CASES = {
    "the blank is the answer's and one token with it": (" a:", 1, [COLON, BLANK_RED, END], 1),
    "the blank is the prompt's and one token with the answer": (
        " a: ",
        1,
        [COLON, BLANK_RED, END],
        1,
    ),
    "the prompt's colon is one token with the answer": (" a:", 2, [COLON_BLANK_RED, END], 0),
    "the prompt's colon and blank are one token with the answer": (
        " a: ",
        2,
        [COLON_BLANK_RED, END],
        0,
    ),
    "the blank is the prompt's and a token of its own": (" a: ", 0, [COLON, BLANK, RED, END], 2),
    "the blank is the answer's and a token of its own": (" a:", 0, [COLON, BLANK, RED, END], 1),
}


@pytest.mark.parametrize("trimmed", [False, True], ids=["whole offsets", "trimmed offsets"])
@pytest.mark.parametrize(("prompt_end", "longer", "rest", "prompt"), CASES.values(), ids=CASES)
def test_every_token_that_reaches_into_an_answer_is_learnt(
    prompt_end, longer, rest, prompt, trimmed
):
    encoder = encoder_of(prompt_end, longer, trimmed)
    encoded = encoder.encode(talk("hi", "red", "hi", "red"))
    assert encoded.input_ids.tolist() == [*QUESTION, *rest, *QUESTION, *rest]
    ignored = [IGNORE] * (len(QUESTION) + prompt)
    assert encoded.labels.tolist() == [*ignored, *rest[prompt:], *ignored, *rest[prompt:]]
    assert encoder.answer_ids(talk("hi", "red"), 1, "red") == rest[prompt:]
