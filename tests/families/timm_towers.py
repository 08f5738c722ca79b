"""Families whose tower is one of timm's: FastVLM and PerceptionLM."""

from transformers import (
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, ends


def save_fast_vlm(folder):
    """FastVLM: convolutions with attention on top; a token for 64 x 64 pixels."""
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}
        ),
        tokenizer=byte_tokenizer("<image>"),
        patch_size=64,
        vision_feature_select_strategy="full",
        chat_template=CHATML_WITH.format(image="<image>\n"),
    )
    widths = {"layers": [1, 1, 1, 1, 1], "embed_dims": [8, 8, 16, 32, 32]}
    config = FastVlmConfig(
        text_config=TEXT | ends(processor) | {"model_type": "qwen2"},
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "model_args": widths | {"inference_mode": True},
            "do_pooling": True,
            "hidden_size": 64,  # timm's last convolution doubles the width
        },
        image_token_index=processor.image_token_id,
        image_seq_length=4,
    )
    return save(folder, redraw(FastVlmForConditionalGeneration(config)), processor)


def save_perception_lm(folder, tiles="thumb+tile"):
    """PerceptionLM: Perception Encoder, tiles of a picture and the whole, average pooling."""
    marks = {"image_token": "<|image|>", "video_token": "<|video|>"}
    processor = PerceptionLMProcessor(
        image_processor=PerceptionLMImageProcessor(
            tile_size=28, max_num_tiles=4, vision_input_type=tiles
        ),
        video_processor=PerceptionLMVideoProcessor(),
        tokenizer=byte_tokenizer(model_specific_special_tokens=marks),
        patch_size=7,
        pooling_ratio=2,
        chat_template=CHATML_WITH.format(image="<|image|>"),
    )
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 7}
    sizes |= {"img_size": [28, 28], "ref_feat_shape": [4, 4], "global_pool": ""}
    config = PerceptionLMConfig(
        text_config=TEXT | ends(processor) | {"model_type": "llama"},
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_lang_large_patch14_448",
            "model_args": sizes,
        },
        projector_pooling_ratio=2,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(PerceptionLMForConditionalGeneration(config)), processor)


def save_perception_lm_in_one_tile(folder):
    """PerceptionLM with `vision_input_type: vanilla`: every picture one tile."""
    return save_perception_lm(folder, "vanilla")
