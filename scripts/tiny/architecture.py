"""The embedded base before training: its tokenizer and processor, and a random LLaVA."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vlmpeft.data.workbench.scene import COLOURS, NAMES, PLACES, SIDE

PATCH = 16
IMAGE_TOKENS = (SIDE // PATCH) ** 2
VISION_WIDTH, VISION_LAYERS = 96, 3
LANGUAGE_WIDTH, LANGUAGE_LAYERS = 128, 4
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<image>")
VOCABULARY = 1024
PHRASES = (
    "what colour is the part at the ",
    "what part is at the ",
    "is the part at the ",
    "the part at the ",
    "describe the picture.",
    "is each part ",
    "where is the ",
    " are there?",
    "how many ",
    " look first.",
    " as json: ",
    "as json: ",
    "repeat: ",
    " is its ",
    " at the ",
    ", so ",
    ", a ",
    " is ",
    '": "',
    '", "',
    '": ',
    ', "',
    '{"',
    '"}',
    ", ",
    " a ",
    "a ",
)
# in this order: a phrase, a word of the world, a capital or digit, a space, any other word, any other signs
WORDS = "|".join(
    (*map(re.escape, (*PHRASES, *PLACES, *COLOURS, *NAMES)), "[A-Z0-9 ]", "[a-z]+", ".")
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(corpus: Iterable[str]) -> Any:
    """Byte-level BPE that never merges across the borders of WORDS.

    A word has the same pieces after a space, after a quote and at the start of an answer: what is asked
    about, what is seen and what is written down share their embeddings. Standing phrases become one
    token, which halves the length of a question and leaves its content words side by side.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL[2:]),
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_processor(tokenizer: Any) -> Any:
    """The tokenizer beside an image processor for SIDE px pictures, and the chat template."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any) -> Any:
    """A random LLaVA of 3 x 96 vision layers, a two-layer MLP projector and 4 x 128 language layers."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=LANGUAGE_WIDTH,
        intermediate_size=352,
        num_hidden_layers=LANGUAGE_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=288,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    _redraw(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def _redraw(model: Any) -> None:
    """Initial weights for a model this narrow; transformers' are made for a width of 4096.

    - Linears at std 1 / sqrt(d_in), those that write to the residual stream a factor sqrt(2 L) smaller.
    - CLIP's position embeddings at 0.5: drawn at 0.02 they are 20 times below what a patch contributes,
      and the tower hardly knows where anything is (rows of the grid at chance after 700 steps).
    - The output head starts as a small copy of the token embeddings: copying needs no detour then.
    """
    for part, layers in (
        (model.model.vision_tower, VISION_LAYERS),
        (model.model.language_model, LANGUAGE_LAYERS),
    ):
        for name, module in part.named_modules():
            if isinstance(module, nn.Linear):
                writes = name.endswith(("o_proj", "out_proj", "down_proj", "fc2"))
                scale = (2 * layers) ** -0.5 if writes else 1.0
                module.weight.normal_(0, scale * module.in_features**-0.5)
    for module in model.model.multi_modal_projector.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0, module.in_features**-0.5)
    for name, parameter in model.model.vision_tower.named_parameters():
        if name.endswith("position_embedding.weight"):
            parameter.normal_(0, 0.5)
    embeddings = model.get_input_embeddings().weight.normal_(0, 0.3)
    model.get_output_embeddings().weight.copy_(embeddings / 6)
