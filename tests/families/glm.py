"""GLM's line: as Qwen-VL's, with a convolution before the merger and the tower's positions interpolated."""

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, ends

CHATML = CHATML_WITH.format(image="<|begin_of_image|><|image|><|end_of_image|>")
PIXELS = {"size": {"shortest_edge": 56 * 56, "longest_edge": 2 * 112 * 112}}
SPECIAL = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>")
SPECIAL += ("<|begin_of_video|>", "<|video|>", "<|end_of_video|>")


def _parts(processor):
    begin_image, image, end_image, begin_video, video, end_video = (
        processor.tokenizer.convert_tokens_to_ids(list(SPECIAL))
    )
    streams = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    tower = {"depth": 2, "num_heads": 2, "hidden_size": 32, "out_hidden_size": 32}
    return {
        "text_config": TEXT | ends(processor) | {"rope_parameters": streams},
        "vision_config": tower | {"intermediate_size": 64, "image_size": 112},
        "image_start_token_id": begin_image,
        "image_token_id": image,
        "image_end_token_id": end_image,
        "video_start_token_id": begin_video,
        "video_token_id": video,
        "video_end_token_id": end_video,
        "tie_word_embeddings": False,
    }


def save_glm4v(folder):
    """GLM-4.1V."""
    processor = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(**PIXELS),
        tokenizer=byte_tokenizer(*SPECIAL),
        video_processor=Glm4vVideoProcessor(),
        chat_template=CHATML,
    )
    model = redraw(Glm4vForConditionalGeneration(Glm4vConfig(**_parts(processor))))
    return save(folder, model, processor)


def save_glm46v(folder):
    """GLM-4.6V: the same model under a processor of its own."""
    processor = Glm46VProcessor(
        image_processor=Glm46VImageProcessor(**PIXELS),
        tokenizer=byte_tokenizer(*SPECIAL),
        video_processor=Glm46VVideoProcessor(),
        chat_template=CHATML,
    )
    parts = _parts(processor)
    parts["text_config"] |= {"model_type": "glm4v_text"}
    parts["vision_config"] |= {"model_type": "glm4v_vision"}
    model = redraw(Glm46VForConditionalGeneration(Glm46VConfig(**parts)))
    return save(folder, model, processor)
