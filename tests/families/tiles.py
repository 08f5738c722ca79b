"""Families that cut a picture into square tiles as its shape wants them, with a small picture of the whole."""

from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2ImageProcessor,
    Ovis2Processor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends

SQUARE = {"size": {"height": 28, "width": 28}}
TOWER = VISION | {"image_size": 28, "patch_size": 7}
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}


def save_internvl(folder):
    """InternVL: four tokens a tile, after a pixel shuffle."""
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    marks |= {"context_image_token": "<IMG_CONTEXT>"}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(**SQUARE, max_patches=4),
        tokenizer=byte_tokenizer(model_specific_special_tokens=marks),
        video_processor=InternVLVideoProcessor(**SQUARE),
        image_seq_length=4,
        chat_template=CHATML_WITH.format(image="<IMG_CONTEXT>\n"),
    )
    config = InternVLConfig(
        text_config=TEXT | ends(processor) | {"model_type": "qwen2"},
        vision_config=TOWER | {"image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=processor.image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(InternVLForConditionalGeneration(config)), processor)


def save_ovis2(folder):
    """Ovis2: a patch is a distribution over a visual vocabulary with an embedding table of its own."""
    words = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    processor = Ovis2Processor(
        image_processor=Ovis2ImageProcessor(**SQUARE, crop_to_patches=True, max_patches=4),
        tokenizer=byte_tokenizer("<image>", "<IMG_ATOM>", *words),
        image_seq_length=4,
        chat_template=CHATML_WITH.format(image="<image>\n"),
    )
    token = processor.tokenizer.convert_tokens_to_ids
    config = Ovis2Config(
        text_config=TEXT | ends(processor) | {"model_type": "qwen2"},
        vision_config=TOWER | {"vocab_size": 40, "hidden_stride": 2},
        image_token_id=token("<IMG_ATOM>"),
        visual_indicator_token_ids=token(list(words)),
        vocab_size=len(processor.tokenizer),
        hidden_size=32,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(Ovis2ForConditionalGeneration(config)), processor)


def save_aya_vision(folder):
    """Aya Vision: SigLIP, a gated projector after a pixel shuffle, parallel blocks."""
    words = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
    processor = AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessor(**SQUARE, max_patches=4),
        tokenizer=byte_tokenizer("<image>", *words, "TILE", "TILE_GLOBAL"),
        patch_size=7,
        img_size=28,
        downsample_factor=2,
        chat_template=CHATML_WITH.format(image="<image>"),
    )
    config = AyaVisionConfig(
        text_config=TEXT | ends(processor) | {"model_type": "cohere2"},
        vision_config=SIGLIP,
        image_token_index=processor.image_token_id,
        downsample_factor=2,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(AyaVisionForConditionalGeneration(config)), processor)


def save_cohere2_vision(folder):
    """Command A Vision: as Aya Vision, with a token at each tile's end."""
    marks = {"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"}
    marks |= {"image_token": "<|IMG_PATCH|>", "img_line_break_token": "<|IMG_LINE_BREAK|>"}
    processor = Cohere2VisionProcessor(
        # its "patch size" squared is the number of tokens a tile: 2 x 2 after the pixel shuffle
        image_processor=Cohere2VisionImageProcessor(**SQUARE, max_patches=4, patch_size=2),
        tokenizer=byte_tokenizer(model_specific_special_tokens=marks),
        chat_template=CHATML_WITH.format(image="<|IMG_PATCH|>"),
    )
    config = Cohere2VisionConfig(
        text_config=TEXT | ends(processor) | {"model_type": "cohere2"},
        vision_config=SIGLIP,
        image_token_id=processor.image_token_id,
        alignment_intermediate_size=64,
        downsample_factor=2,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(Cohere2VisionForConditionalGeneration(config)), processor)
