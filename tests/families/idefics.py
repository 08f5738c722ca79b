"""The Idefics line: pictures in rows by conversation, empty places filled with zeros; SmolVLM is of it."""

from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessor,
    Idefics2Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends

CHATML = CHATML_WITH.format(image="<image>")
PLACES = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
SPECIAL = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *PLACES)
SPLIT = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
TOWER = VISION | {"image_size": 28, "patch_size": 7}


def save_idefics2(folder):
    """Idefics2: pictures of any shape, which a perceiver boils down to four tokens each."""
    processor = Idefics2Processor(
        image_processor=Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 56}),
        tokenizer=byte_tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
        image_seq_len=4,
        chat_template=CHATML,
    )
    perceiver = {"resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 2}
    perceiver |= {"resampler_head_dim": 16, "num_key_value_heads": 1, "hidden_size": 32}
    config = Idefics2Config(
        text_config=TEXT | ends(processor) | {"model_type": "mistral"},
        vision_config=TOWER | {"image_size": 56},
        perceiver_config=perceiver,
        image_token_id=processor.image_token_id,
    )
    return save(folder, redraw(Idefics2ForConditionalGeneration(config)), processor)


def _split_parts(processor):
    return {
        "text_config": TEXT | ends(processor) | {"model_type": "llama"},
        "vision_config": TOWER,
        "image_token_id": processor.image_token_id,
        "scale_factor": 2,
    }


def save_idefics3(folder):
    """Idefics3: up to 2 x 2 tiles and the whole picture, four tokens each."""
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(**SPLIT),
        tokenizer=byte_tokenizer(*SPECIAL),
        image_seq_len=4,
        chat_template=CHATML,
    )
    config = Idefics3Config(**_split_parts(processor))
    return save(folder, redraw(Idefics3ForConditionalGeneration(config)), processor)


def save_smolvlm(folder):
    """SmolVLM: Idefics3's tiles."""
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**SPLIT),
        tokenizer=byte_tokenizer(*SPECIAL, "<video>"),
        video_processor=SmolVLMVideoProcessor(**SPLIT),
        image_seq_len=4,
        chat_template=CHATML,
    )
    config = SmolVLMConfig(**_split_parts(processor))
    return save(folder, redraw(SmolVLMForConditionalGeneration(config)), processor)
