"""Families whose pictures keep their own shape: as many tokens as the picture has patches."""

from transformers import (
    HunYuanVLConfig,
    HunYuanVLForConditionalGeneration,
    HunYuanVLProcessor,
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_6Processor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    PaddleOCRVLProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLImageProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.hunyuan_vl.image_processing_hunyuan_vl import HunYuanVLImageProcessor
from transformers.models.minicpmv4_6.image_processing_minicpmv4_6 import MiniCPMV4_6ImageProcessor
from transformers.models.minicpmv4_6.video_processing_minicpmv4_6 import MiniCPMV4_6VideoProcessor
from transformers.models.paddleocr_vl.image_processing_paddleocr_vl import PaddleOCRVLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends


def save_mistral3(folder):
    """A Pixtral tower with 2 x 2 patch merging; rows of a picture end with tokens of their own."""
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(
            size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}
        ),
        tokenizer=byte_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=14,
        spatial_merge_size=2,
        chat_template=CHATML_WITH.format(image="[IMG]"),
    )
    config = Mistral3Config(
        text_config=TEXT
        | ends(processor)
        | {"model_type": "mistral", "head_dim": 8, "tie_word_embeddings": False},
        vision_config=VISION
        | {"model_type": "pixtral", "image_size": 112, "patch_size": 14, "head_dim": 16},
        image_token_index=processor.image_token_id,
        tie_word_embeddings=False,
    )
    save(folder, redraw(Mistral3ForConditionalGeneration(config)), processor)


def _rope(*sections, theta=1e4):
    """Positions in several streams, each on a part of every head."""
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections)}
    return {"rope_parameters": rope}


def save_paddleocr_vl(folder):
    """PaddleOCR-VL: a SigLIP tower at native resolution under an Ernie decoder."""
    processor = PaddleOCRVLProcessor(
        image_processor=PaddleOCRVLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=byte_tokenizer(
            "<|IMAGE_START|>", "<|IMAGE_END|>", image_token="<|IMAGE_PLACEHOLDER|>"
        ),
        chat_template=CHATML_WITH.format(image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    token = processor.tokenizer.convert_tokens_to_ids
    config = PaddleOCRVLConfig(
        text_config=TEXT | ends(processor) | {"head_dim": 8} | _rope(2, 1, 1),
        vision_config=VISION | {"image_size": 112, "patch_size": 14},
        image_token_id=processor.image_token_id,
        vision_start_token_id=token("<|IMAGE_START|>"),
        vision_end_token_id=token("<|IMAGE_END|>"),
        tie_word_embeddings=False,
    )
    save(folder, redraw(PaddleOCRVLForConditionalGeneration(config)), processor)


def save_hunyuan_vl(folder):
    """HunYuan-VL: four streams of positions, a token at the end of each row of patches."""
    marks = {"image_start_token": "<img>", "image_token": "<pad>", "image_end_token": "</img>"}
    processor = HunYuanVLProcessor(
        image_processor=HunYuanVLImageProcessor(min_pixels=64 * 64, max_pixels=128 * 128),
        tokenizer=byte_tokenizer("<newline>", **marks),
        chat_template=CHATML_WITH.format(image="<img><pad></img>"),
    )
    vision = VISION | {"out_hidden_size": 32, "min_image_size": 64, "max_image_size": 128}
    config = HunYuanVLConfig(
        text_config=TEXT | ends(processor) | {"head_dim": 8} | _rope(1, 1, 1, 1, theta=10.0),
        vision_config=vision | {"img_max_token_num": 64},
        image_token_id=processor.image_token_id,
        im_start_id=processor.image_start_token_id,
        im_end_id=processor.image_end_token_id,
        im_newline_id=processor.tokenizer.convert_tokens_to_ids("<newline>"),
        tie_word_embeddings=False,
    )
    save(folder, redraw(HunYuanVLForConditionalGeneration(config)), processor)


def save_minicpmv4_6(folder):
    """MiniCPM-V 4.6: slices beside the whole picture, a merger between the tower's layers."""
    marks = {
        f"{name}_token": f"<{name}>"
        for name in ("image", "video", "image_start", "image_end", "slice_start", "slice_end")
    }
    marks |= {"image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"}
    processor = MiniCPMV4_6Processor(
        image_processor=MiniCPMV4_6ImageProcessor(scale_resolution=112, max_slice_nums=2),
        tokenizer=byte_tokenizer(**marks),
        video_processor=MiniCPMV4_6VideoProcessor(),
        chat_template=CHATML_WITH.format(image="<image>"),
    )
    text = TEXT | ends(processor) | {"model_type": "qwen3_5_text", "head_dim": 8}
    text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    config = MiniCPMV4_6Config(
        text_config=text
        | {"linear_num_value_heads": 2, "layer_types": ["linear_attention", "full_attention"]},
        vision_config=VISION | {"image_size": 112, "patch_size": 14},
        insert_layer_id=0,
        image_size=112,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    save(folder, redraw(MiniCPMV4_6ForConditionalGeneration(config)), processor)


def save_qwen2_5_omni(folder):
    """Qwen2.5-Omni's thinker: a Qwen2.5-VL with an audio tower that stays as it is."""
    marks = {f"{name}_token": f"<{name}>" for name in ("image", "video", "audio")}
    marks |= {f"{name}_token": f"<{name}>" for name in ("vision_bos", "vision_eos")}
    marks |= {f"{name}_token": f"<{name}>" for name in ("audio_bos", "audio_eos")}
    processor = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        video_processor=Qwen2VLVideoProcessor(),
        feature_extractor=WhisperFeatureExtractor(feature_size=16),
        tokenizer=byte_tokenizer(**marks),
        chat_template=CHATML_WITH.format(image="<vision_bos><image><vision_eos>"),
    )
    token = processor.tokenizer.convert_tokens_to_ids
    audio = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    config = Qwen2_5OmniThinkerConfig(
        text_config=TEXT | ends(processor) | _rope(2, 1, 1),
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
        | {"out_hidden_size": 32, "fullatt_block_indexes": [1]},
        audio_config=audio | {"encoder_ffn_dim": 64, "num_mel_bins": 16, "output_dim": 32},
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        audio_token_index=token("<audio>"),
        audio_start_token_id=token("<audio_bos>"),
        audio_end_token_id=token("<audio_eos>"),
        vision_start_token_id=token("<vision_bos>"),  # no field, but in every published config
        vision_end_token_id=token("<vision_eos>"),
    )
    save(folder, redraw(Qwen2_5OmniThinkerForConditionalGeneration(config)), processor)
