"""Gemma's line: SigLIP, attention both ways within a picture or a prompt, token types that say where."""

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends

SQUARE = {"size": {"height": 28, "width": 28}}
TOWER = VISION | {"image_size": 28, "patch_size": 7, "vision_use_head": False}
# PaliGemma's processor puts <bos> after the last picture; prompt and answer are a line break apart
PREFIX_AND_SUFFIX = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
)


def save_paligemma(folder):
    """PaliGemma: the prompt is read both ways, the answer one way; no text without a picture."""
    image_processor = SiglipImageProcessor(**SQUARE)
    image_processor.image_seq_length = 16
    processor = PaliGemmaProcessor(
        image_processor=image_processor,
        tokenizer=byte_tokenizer("<image>", bos_token="<bos>"),
        chat_template=PREFIX_AND_SUFFIX,
    )
    config = PaliGemmaConfig(
        text_config=TEXT | ends(processor) | {"model_type": "gemma", "head_dim": 8},
        vision_config=TOWER | {"model_type": "siglip_vision_model"},
        image_token_index=processor.image_token_id,
        projection_dim=32,
        hidden_size=32,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(PaliGemmaForConditionalGeneration(config)), processor)


def save_gemma3(folder):
    """Gemma 3: sliding and full attention in turn, four tokens a picture, which see one another."""
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    marks |= {"image_token": "<image_soft_token>"}
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(**SQUARE),
        tokenizer=byte_tokenizer(model_specific_special_tokens=marks),
        image_seq_length=4,
        chat_template=CHATML_WITH.format(image="<start_of_image>"),
    )
    token = processor.tokenizer
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    config = Gemma3Config(
        text_config=TEXT | ends(processor) | layers | {"head_dim": 8, "query_pre_attn_scalar": 8},
        vision_config=TOWER,
        mm_tokens_per_image=4,
        boi_token_index=token.boi_token_id,
        eoi_token_index=token.eoi_token_id,
        image_token_index=token.image_token_id,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(Gemma3ForConditionalGeneration(config)), processor)
