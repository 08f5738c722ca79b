"""The LLaVA line: a CLIP or SigLIP tower, a small projector, an ordinary decoder."""

from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends

CHATML = CHATML_WITH.format(image="<image>\n")
SQUARE = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
CLIP = VISION | {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 7}
SIGLIP = VISION | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7}
TILES = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def _parts(processor, vision=CLIP, decoder="llama"):
    """What every config of the line says."""
    return {
        "text_config": TEXT | ends(processor) | {"model_type": decoder},
        "vision_config": vision,
        "image_token_index": processor.image_token_id,
        "tie_word_embeddings": False,
    }


def _llava_processor(image_processor):
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=byte_tokenizer("<image>"),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML,
    )


def save_llava(folder):
    """LLaVA 1.5: the last but one layer of CLIP, its class token left out."""
    processor = _llava_processor(LlavaImageProcessor(**SQUARE))
    config = LlavaConfig(**_parts(processor), image_seq_length=16)
    save(folder, redraw(LlavaForConditionalGeneration(config)), processor)


def save_vipllava(folder):
    """ViP-LLaVA: the features of several layers of CLIP side by side."""
    processor = _llava_processor(CLIPImageProcessor(**SQUARE))
    config = VipLlavaConfig(**_parts(processor), vision_feature_layer=[-2, 0], image_seq_length=16)
    save(folder, redraw(VipLlavaForConditionalGeneration(config)), processor)


def save_llava_next(folder):
    """LLaVA-NeXT: tiles as the picture's shape wants them, beside the whole picture."""
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(**SQUARE, image_grid_pinpoints=TILES),
        tokenizer=byte_tokenizer("<image>"),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML,
    )
    config = LlavaNextConfig(**_parts(processor), image_grid_pinpoints=TILES)
    save(folder, redraw(LlavaNextForConditionalGeneration(config)), processor)


def save_llava_onevision(folder):
    """LLaVA-OneVision: SigLIP; one picture is tiled, several are not."""
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size={"height": 28, "width": 28}, image_grid_pinpoints=TILES
        ),
        tokenizer=byte_tokenizer("<image>", "<video>"),
        video_processor=LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHATML,
    )
    config = LlavaOnevisionConfig(
        **_parts(processor, SIGLIP | {"vision_use_head": False}, "qwen2"),
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=TILES,
    )
    save(folder, redraw(LlavaOnevisionForConditionalGeneration(config)), processor)


def save_video_llava(folder):
    """Video-LLaVA: a tower for pictures and one for videos, which no picture reaches."""
    processor = VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**SQUARE),
        video_processor=VideoLlavaVideoProcessor(**SQUARE),
        tokenizer=byte_tokenizer("<image>", "<video>"),
        patch_size=7,
        vision_feature_select_strategy="default",
        chat_template=CHATML,
    )
    config = VideoLlavaConfig(
        **_parts(processor), video_token_index=processor.video_token_id, image_seq_length=16
    )
    save(folder, redraw(VideoLlavaForConditionalGeneration(config)), processor)
