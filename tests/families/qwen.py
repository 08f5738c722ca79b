"""Qwen's family: mergers inside the tower, pictures of any size, positions in three streams."""

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from .common import CHATML_WITH, byte_tokenizer, redraw

CHATML = CHATML_WITH.format(image="<|vision_start|><|image_pad|><|vision_end|>")
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def qwen_processor():
    """A real Qwen2.5-VL processor: the number of image tokens follows the picture's size."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=byte_tokenizer(*SPECIAL),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHATML,
    )


def save_qwen(folder):
    """A random Qwen2.5-VL of two layers each."""
    processor = qwen_processor()
    token = processor.tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
        "eos_token_id": token("<|im_end|>"),
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    redraw(Qwen2_5_VLForConditionalGeneration(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
