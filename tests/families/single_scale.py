"""Families that resize a picture to one square: DeepSeek-VL, Janus, Aria, GOT-OCR 2."""

from transformers import (
    AriaConfig,
    AriaForConditionalGeneration,
    AriaImageProcessor,
    AriaProcessor,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    GotOcr2ImageProcessor,
    GotOcr2Processor,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends

SQUARE = {"size": {"height": 28, "width": 28}}
TOWER = VISION | {"image_size": 28, "patch_size": 7}


def save_deepseek_vl(folder):
    """DeepSeek-VL: SigLIP and two linear layers."""
    processor = DeepseekVLProcessor(
        image_processor=DeepseekVLImageProcessor(**SQUARE),
        tokenizer=byte_tokenizer(
            model_specific_special_tokens={"image_token": "<image_placeholder>"}
        ),
        num_image_tokens=16,
        chat_template=CHATML_WITH.format(image="<image_placeholder>"),
    )
    config = DeepseekVLConfig(
        text_config=TEXT | ends(processor) | {"model_type": "llama"},
        vision_config=TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(DeepseekVLForConditionalGeneration(config)), processor)


def save_janus(folder):
    """Janus: beside tower and aligner a VQ-VAE and a head that draw, which no text needs."""
    marks = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>"}
    marks |= {"eoi_token": "<end_of_image>"}
    processor = JanusProcessor(
        image_processor=JanusImageProcessor(**SQUARE),
        tokenizer=byte_tokenizer(model_specific_special_tokens=marks),
        num_image_tokens=16,
        chat_template=CHATML_WITH.format(image="<image_placeholder>\n"),
    )
    tower = {key: value for key, value in TOWER.items() if key != "intermediate_size"}
    drawing = {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32}
    drawing |= {"channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 4}
    config = JanusConfig(
        text_config=TEXT | ends(processor) | {"model_type": "llama"},
        vision_config=tower | {"mlp_ratio": 2, "projection_dim": 32, "num_image_tokens": 16},
        vq_config=drawing | {"projection_dim": 32, "image_token_embed_dim": 32},
        image_token_id=processor.tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(JanusForConditionalGeneration(config)), processor)


def save_aria(folder):
    """Aria: four query tokens cross-attend to the picture; four experts, two at a time."""
    processor = AriaProcessor(
        image_processor=AriaImageProcessor(max_image_size=980),  # 490 and 980 are all it takes
        tokenizer=byte_tokenizer(model_specific_special_tokens={"image_token": "<|img|>"}),
        size_conversion={980: 4},
        chat_template=CHATML_WITH.format(image="<fim_prefix><|img|><fim_suffix>"),
    )
    experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    config = AriaConfig(
        text_config=TEXT | ends(processor) | experts,
        vision_config=VISION
        | {"model_type": "idefics3_vision", "image_size": 980, "patch_size": 140},
        projector_patch_to_query_dict={49: 4},
        image_token_index=processor.image_token_id,
    )
    return save(folder, redraw(AriaForConditionalGeneration(config)), processor)


def save_got_ocr2(folder):
    """GOT-OCR 2: SAM's tower with windows, 256 tokens a picture; it takes no text without one."""
    processor = GotOcr2Processor(
        image_processor=GotOcr2ImageProcessor(size={"height": 256, "width": 256}),
        tokenizer=byte_tokenizer("<img>", "</img>", "<imgpad>"),
        chat_template=CHATML_WITH.format(image="<img><imgpad></img>\n"),
    )
    tower = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    tower |= {"image_size": 256, "patch_size": 4, "output_channels": 32, "mlp_dim": 64}
    config = GotOcr2Config(
        text_config=TEXT | ends(processor) | {"model_type": "qwen2"},
        vision_config=tower | {"window_size": 8, "global_attn_indexes": []},
        image_token_index=processor.image_token_id,
        image_seq_length=256,
        tie_word_embeddings=False,
    )
    return save(folder, redraw(GotOcr2ForConditionalGeneration(config)), processor)
