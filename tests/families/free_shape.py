"""Families whose tower reads a picture in its own shape, other than Qwen-VL and GLM."""

from transformers import (
    Exaone4_5_Config,
    Exaone4_5_ForConditionalGeneration,
    Exaone4_5_Processor,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    LightOnOcrProcessor,
    PixtralImageProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends


def save_lfm2_vl(folder):
    """LFM2-VL: SigLIP 2 with padded patches, a decoder of short convolutions and attention in turn."""
    places = tuple(
        f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)
    )
    words = ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    processor = Lfm2VlProcessor(
        image_processor=Lfm2VlImageProcessor(
            tile_size=28,
            encoder_patch_size=7,
            min_image_tokens=2,
            max_image_tokens=4,
            max_tiles=4,
        ),
        tokenizer=byte_tokenizer(*words, *places),
        chat_template=CHATML_WITH.format(image="<image>"),
    )
    tower = {"model_type": "siglip2_vision_model", "patch_size": 7, "num_patches": 16}
    config = Lfm2VlConfig(
        text_config=TEXT
        | ends(processor)
        | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
        vision_config=VISION | tower | {"vision_use_head": False},
        image_token_id=processor.image_token_id,
        projector_hidden_size=64,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(Lfm2VlForConditionalGeneration(config)), processor)


def save_lighton_ocr(folder):
    """LightOnOCR: a Pixtral tower with 2 x 2 patch merging, a Qwen3 decoder."""
    marks = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>"}
    marks |= {"image_end_token": "<|vision_end|>"}
    processor = LightOnOcrProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 112}, patch_size=28),
        tokenizer=byte_tokenizer(model_specific_special_tokens=marks),
        patch_size=14,
        spatial_merge_size=2,
        chat_template=CHATML_WITH.format(image="<|image_pad|>"),
    )
    config = LightOnOcrConfig(
        text_config=TEXT | ends(processor) | {"model_type": "qwen3", "head_dim": 8},
        vision_config=VISION
        | {"model_type": "pixtral", "image_size": 112, "patch_size": 14, "head_dim": 16},
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(LightOnOcrForConditionalGeneration(config)), processor)


def save_exaone4_5(folder):
    """EXAONE 4.5: Qwen2.5-VL's tower with grouped heads; sliding and full attention in turn."""
    processor = Exaone4_5_Processor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=byte_tokenizer("<vision>", "</vision>", "<|image_pad|>", "<|video_pad|>"),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHATML_WITH.format(image="<vision><|image_pad|></vision>\n"),
    )
    tower = {"depth": 2, "num_heads": 2, "num_key_value_heads": 1, "hidden_size": 32}
    tower |= {"intermediate_size": 64, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    config = Exaone4_5_Config(
        text_config=TEXT | ends(processor) | {"model_type": "exaone4"} | layers,
        vision_config=tower,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    return save(folder, redraw(Exaone4_5_ForConditionalGeneration(config)), processor)


def save_video_llama_3(folder):
    """VideoLLaMA 3: patches of every picture in one row, as many merged as the processor says."""
    processor = VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(
            size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
        ),
        tokenizer=byte_tokenizer("<|image_pad|>", "<|video_pad|>"),
        video_processor=VideoLlama3VideoProcessor(),
        chat_template=CHATML_WITH.format(image="<|image_pad|>\n"),
    )
    config = VideoLlama3Config(
        text_config=TEXT | ends(processor) | {"model_type": "qwen2"},
        vision_config=VISION | {"patch_size": 14},
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    return save(folder, redraw(VideoLlama3ForConditionalGeneration(config)), processor)
