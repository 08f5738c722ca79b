"""Families whose language model has experts: fused tensors, and routers that choose among them."""

from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Glm4vImageProcessor,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Kimi_K25Config,
    Kimi_K25ForConditionalGeneration,
    Kimi_K25Processor,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4ImageProcessor,
    Llama4Processor,
)
from transformers.models.ernie4_5_vl_moe.video_processing_ernie4_5_vl_moe import (
    Ernie4_5_VLMoeVideoProcessor,
)
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.models.kimi_k25.image_processing_kimi_k25 import Kimi_K25ImageProcessor
from transformers.models.kimi_k25.video_processing_kimi_k25 import Kimi_K25VideoProcessor

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends

LLAMA4 = (
    *("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>"),
    *("<|tile_x_separator|>", "<|tile_y_separator|>"),
)


def save_llama4(folder):
    """Llama 4: tiles and a thumbnail; a router that is a Linear and returns two tensors."""
    processor = Llama4Processor(
        image_processor=Llama4ImageProcessor(size={"height": 28, "width": 28}, max_patches=4),
        tokenizer=byte_tokenizer(*LLAMA4),
        patch_size=7,
        pixel_shuffle_ratio=0.5,
        chat_template=CHATML_WITH.format(image="<|image|>"),
    )
    token = processor.tokenizer.convert_tokens_to_ids
    text = TEXT | ends(processor) | {"head_dim": 8, "num_local_experts": 2}
    vision = VISION | {"image_size": 28, "patch_size": 7, "pixel_shuffle_ratio": 0.5}
    # pixel shuffle makes of four patches one, four times as wide
    vision |= {"intermediate_size": 128, "projector_input_dim": 32, "projector_output_dim": 32}
    config = Llama4Config(
        text_config=text | {"intermediate_size_mlp": 64, "interleave_moe_layer_step": 2},
        vision_config=vision | {"vision_output_dim": 32},
        image_token_index=token("<|patch|>"),
        boi_token_index=token("<|image_start|>"),
        eoi_token_index=token("<|image_end|>"),
    )
    save(folder, redraw(Llama4ForConditionalGeneration(config)), processor)


def _places(processor, **tokens):
    """Ids of the tokens around pictures, as a config names them."""
    return {
        f"{name}_token_id": processor.tokenizer.convert_tokens_to_ids(tokens[name])
        for name in tokens
    }


def save_glm4v_moe(folder):
    """GLM-4.5V: the merger sits inside the tower, the second layer has experts."""
    places = {
        "image": "<|image|>",
        "video": "<|video|>",
        "image_start": "<|begin_of_image|>",
        "image_end": "<|end_of_image|>",
        "video_start": "<|begin_of_video|>",
        "video_end": "<|end_of_video|>",
    }
    processor = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(
            size={"shortest_edge": 56 * 56, "longest_edge": 2 * 112 * 112}
        ),
        tokenizer=byte_tokenizer(*places.values()),
        video_processor=Glm4vVideoProcessor(),
        chat_template=CHATML_WITH.format(image="<|begin_of_image|><|image|><|end_of_image|>"),
    )
    text = TEXT | ends(processor) | {"moe_intermediate_size": 16, "n_routed_experts": 4}
    text |= {
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    }
    text |= {"head_dim": 16, "num_experts_per_tok": 2}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
    config = Glm4vMoeConfig(
        text_config=text | {"first_k_dense_replace": 1},
        vision_config=vision | {"out_hidden_size": 32, "image_size": 112},
        **_places(processor, **places),
    )
    save(folder, redraw(Glm4vMoeForConditionalGeneration(config)), processor)


def save_ernie(folder):
    """Ernie 4.5 VL: experts for text and others for pictures, told apart token by token."""
    places = {
        "image": "<|IMAGE_PLACEHOLDER|>",
        "image_start": "<|IMAGE_START|>",
        "image_end": "<|IMAGE_END|>",
        "video": "<|VIDEO_PLACEHOLDER|>",
        "video_start": "<|VIDEO_START|>",
        "video_end": "<|VIDEO_END|>",
    }
    processor = Ernie4_5_VLMoeProcessor(
        image_processor=Ernie4_5_VLMoeImageProcessor(
            size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
        ),
        tokenizer=byte_tokenizer(**{f"{name}_token": places[name] for name in places}),
        video_processor=Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False),
        chat_template=CHATML_WITH.format(image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    text = TEXT | ends(processor) | {"moe_intermediate_size": [16, 16], "moe_num_experts": 4}
    text |= {
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    }
    config = Ernie4_5_VLMoeConfig(
        text_config=text | {"moe_k": 2, "mlp_layer_types": ["dense", "sparse"]},
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64},
        tie_word_embeddings=False,
        **_places(processor, **places),
    )
    save(folder, redraw(Ernie4_5_VLMoeForConditionalGeneration(config)), processor)


def save_kimi_k25(folder):
    """Kimi K2.5: a MoonViT tower under a DeepSeek-V3 decoder with latent attention."""
    processor = Kimi_K25Processor(
        image_processor=Kimi_K25ImageProcessor(size={"max_height": 112, "max_width": 112}),
        tokenizer=byte_tokenizer(
            *("<|media_begin|>", "<|media_content|>", "<|media_end|>"),
            *("<|media_pad|>", "<|kimi_k25_video_placeholder|>"),
        ),
        video_processor=Kimi_K25VideoProcessor(),
        chat_template=CHATML_WITH.format(
            image="<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"
        ),
    )
    token = processor.tokenizer.convert_tokens_to_ids
    text = TEXT | ends(processor) | {"model_type": "deepseek_v3", "num_key_value_heads": 4}
    text |= {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
    text |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8}
    text |= {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    config = Kimi_K25Config(
        text_config=text,
        vision_config=VISION | {"pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=32,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=token("<|media_begin|>"),
        vision_end_token_id=token("<|media_end|>"),
        tie_word_embeddings=False,
    )
    save(folder, redraw(Kimi_K25ForConditionalGeneration(config)), processor)
