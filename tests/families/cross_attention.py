"""Families whose language model looks at pictures through cross-attention, not through its own tokens."""

import torch
from transformers import (
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
)

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends


def save_mllama(folder):
    """Llama 3.2 Vision: up to four tiles a picture, a row of pictures a conversation, gated layers."""
    tokenizer = byte_tokenizer("<|python_tag|>", bos_token="<|begin_of_text|>")
    words = len(tokenizer)  # the picture's token is embedded but has no place in the output head
    tokenizer.add_tokens(["<|image|>"], special_tokens=True)
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4),
        tokenizer=tokenizer,
        chat_template="{{ bos_token }}" + CHATML_WITH.format(image="<|image|>"),
    )
    config = MllamaConfig(
        text_config=TEXT
        | ends(processor)
        | {"vocab_size": words, "cross_attention_layers": [1]}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        vision_config={key: VISION[key] for key in VISION if key != "num_attention_heads"}
        | {"attention_heads": 2, "num_global_layers": 1, "image_size": 28, "patch_size": 14}
        | {"intermediate_layers_indices": [0], "vision_output_dim": 64},
        image_token_index=processor.image_token_id,
    )
    model = redraw(MllamaForConditionalGeneration(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name.rsplit(".", 1)[-1]:
                parameter.fill_(0.5)  # 0 at the start: shut
    save(folder, model, processor)


def save_florence2(folder):
    """Florence-2: a DaViT tower; a BART encoder reads picture and question, its decoder answers."""
    side = {"height": 64, "width": 64}
    processor = Florence2Processor(
        image_processor=CLIPImageProcessor(
            size=side, do_center_crop=False, image_seq_length=5
        ),  # 2 x 2 places and their mean
        tokenizer=byte_tokenizer(bos_token="<s>", image_token="<image>"),
        chat_template=CHATML_WITH.format(image=""),  # the processor puts the picture first
    )
    stages = ("depths", "num_heads", "num_groups")
    vision = {key: [1, 1, 1, 2] for key in stages} | {"embed_dim": [8, 8, 16, 32]}
    tokenizer = processor.tokenizer
    text = {"model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
    text |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    text |= {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")}
    config = Florence2Config(
        text_config=text | ends(processor) | {"decoder_start_token_id": tokenizer.eos_token_id},
        vision_config=vision | {"window_size": 4, "projection_dim": 32},
        image_token_id=tokenizer.image_token_id,
    )
    save(folder, redraw(Florence2ForConditionalGeneration(config)), processor)
