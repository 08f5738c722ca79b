"""Qwen's family: mergers inside the tower, pictures of any size, positions in three streams."""

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, ends

CHATML = CHATML_WITH.format(image="<|vision_start|><|image_pad|><|vision_end|>")
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TOWER = {"depth": 2, "num_heads": 2, "hidden_size": 32, "out_hidden_size": 32}
TOWER |= {"intermediate_size": 64}
STREAMS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
INTERLEAVED = STREAMS | {"mrope_interleaved": True}


def _processor(processor_class, video_processor):
    return processor_class(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=byte_tokenizer(*SPECIAL),
        video_processor=video_processor,
        chat_template=CHATML,
    )


def qwen_processor():
    """A real Qwen2.5-VL processor: the number of image tokens follows the picture's size."""
    return _processor(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor())


def _parts(processor, text, vision):
    """What every config of the family says."""
    token = processor.tokenizer.convert_tokens_to_ids
    return {
        "text_config": TEXT | ends(processor) | text,
        "vision_config": vision,
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


def save_qwen2_vl(folder):
    """Qwen2-VL: a tower whose `hidden_size` is the decoder's and whose own is `embed_dim`."""
    processor = _processor(Qwen2VLProcessor, Qwen2VLVideoProcessor())
    vision = {"depth": 2, "num_heads": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    config = Qwen2VLConfig(**_parts(processor, {"rope_parameters": STREAMS}, vision))
    return save(folder, redraw(Qwen2VLForConditionalGeneration(config)), processor)


def save_qwen(folder):
    """A random Qwen2.5-VL of two layers each."""
    processor = qwen_processor()
    vision = TOWER | {"fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(**_parts(processor, {"rope_parameters": STREAMS}, vision))
    return save(folder, redraw(Qwen2_5_VLForConditionalGeneration(config)), processor)


def _qwen3_parts(text, deepstack):
    processor = _processor(Qwen3VLProcessor, Qwen3VLVideoProcessor())
    vision = TOWER | {"patch_size": 14, "num_position_embeddings": 64} | deepstack
    text = {"head_dim": 8, "rope_parameters": INTERLEAVED} | text
    return processor, _parts(processor, text, vision)


def save_qwen3_vl(folder):
    """Qwen3-VL: an inner layer of the tower is merged into the decoder's first layer as well."""
    processor, parts = _qwen3_parts({}, {"deepstack_visual_indexes": [0]})
    model = redraw(Qwen3VLForConditionalGeneration(Qwen3VLConfig(**parts)))
    return save(folder, model, processor)


def save_qwen3_vl_moe(folder):
    """Qwen3-VL with four experts, two at a time, as fused 3-D parameters."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    processor, parts = _qwen3_parts(experts, {"deepstack_visual_indexes": [0]})
    model = redraw(Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**parts)))
    return save(folder, model, processor)


def save_qwen3_5(folder):
    """Qwen3.5: a decoder of linear (gated delta) and full attention in turn."""
    linear = {"layer_types": ["linear_attention", "full_attention"]}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    streams = {"rope_parameters": INTERLEAVED | {"partial_rotary_factor": 1.0}}
    processor, parts = _qwen3_parts(linear | streams, {})
    model = redraw(Qwen3_5ForConditionalGeneration(Qwen3_5Config(**parts)))
    return save(folder, model, processor)
