"""Families that take more than one look at a picture: crops, second towers, features of several layers."""

from transformers import (
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    DeepseekVLHybridProcessor,
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Granite4VisionProcessor,
    GraniteDoclingConfig,
    GraniteDoclingForConditionalGeneration,
    GraniteDoclingProcessor,
    LlavaNextImageProcessor,
    Molmo2Config,
    Molmo2ForConditionalGeneration,
    Molmo2Processor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)
from transformers.models.deepseek_vl_hybrid.image_processing_deepseek_vl_hybrid import (
    DeepseekVLHybridImageProcessor,
)
from transformers.models.granite_docling.image_processing_granite_docling import (
    GraniteDoclingImageProcessor,
)
from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor
from transformers.models.molmo2.video_processing_molmo2 import Molmo2VideoProcessor

from .common import CHATML_WITH, byte_tokenizer, redraw, save
from .sizes import TEXT, VISION, ends

MOLMO2 = (
    *("<|image|>", "<|video|>", "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>"),
    *("<frame_start>", "<im_end>", "<frame_end>", "<im_low>"),
)


def save_molmo2(folder):
    """Molmo 2: overlapping crops; its tokens for pictures have no place in the output head."""
    tokenizer = byte_tokenizer()
    words = len(tokenizer)
    tokenizer.add_tokens(list(MOLMO2), special_tokens=True)
    processor = Molmo2Processor(
        image_processor=Molmo2ImageProcessor(
            size={"height": 56, "width": 56}, overlap_margins=[1, 1], max_crops=2
        ),
        video_processor=Molmo2VideoProcessor(),
        tokenizer=tokenizer,
        chat_template="<|im_end|>" + CHATML_WITH.format(image="<|image|>"),  # as a start token
    )
    text = TEXT | ends(processor) | {"head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    adapter = {"hidden_size": 32, "intermediate_size": 64, "text_hidden_size": 32}
    token = tokenizer.convert_tokens_to_ids
    config = Molmo2Config(
        text_config=text | {"vocab_size": words, "additional_vocab_size": len(MOLMO2)},
        vision_config=VISION | heads | {"image_size": [56, 56], "patch_size": 14},
        adapter_config=heads | adapter | {"vision_feature_layer": [-1, -2]},
        image_start_token_id=token("<im_start>"),
        low_res_image_start_token_id=token("<low_res_im_start>"),
        image_end_token_id=token("<im_end>"),
        image_patch_id=token("<im_patch>"),
        frame_start_token_id=token("<frame_start>"),
        frame_end_token_id=token("<frame_end>"),
    )
    save(folder, redraw(Molmo2ForConditionalGeneration(config)), processor)


def save_granite4_vision(folder):
    """Granite 4 Vision: window Q-Formers add features of several tower layers at several text layers."""
    grid = [[56, 56], [56, 112], [112, 56]]
    processor = Granite4VisionProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"height": 56, "width": 56},
            crop_size={"height": 56, "width": 56},
            image_grid_pinpoints=grid,
        ),
        tokenizer=byte_tokenizer("<image>"),
        patch_size=14,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        chat_template=CHATML_WITH.format(image="<image>"),
    )
    vision = VISION | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14}
    config = Granite4VisionConfig(
        text_config=TEXT | ends(processor),
        # the Q-Formers' heads are 64 wide
        vision_config=vision | {"hidden_size": 64, "vision_use_head": False},
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1}
        | {"intermediate_size": 64, "cross_attention_frequency": 1},
        image_token_index=processor.image_token_id,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=grid,
        downsample_rate="2/4",
        deepstack_layer_map=[[-2, 0]],
        spatial_target_layers=[1],
    )
    save(folder, redraw(Granite4VisionForConditionalGeneration(config)), processor)


def save_granite_docling(folder):
    """Granite Docling: tiles, a connector inside the tower's module, features of an inner layer."""
    tags = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    processor = GraniteDoclingProcessor(
        image_processor=GraniteDoclingImageProcessor(
            size={"height": 56, "width": 56}, max_patches=3
        ),
        tokenizer=byte_tokenizer(*("<image>", "<fake_token_around_image>", "<global-img>", *tags)),
        image_seq_len=4,
        chat_template=CHATML_WITH.format(image="<image>"),
    )
    vision = VISION | {"image_size": 56, "patch_size": 14, "scale_factor": 2}
    multipliers = {"embedding_multiplier": 1.0, "logits_scaling": 1.0}
    multipliers |= {"residual_multiplier": 1.0, "attention_multiplier": 0.35}
    config = GraniteDoclingConfig(
        text_config=TEXT | ends(processor) | multipliers,
        vision_config=vision
        | {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "use_fine_route": False},
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    save(folder, redraw(GraniteDoclingForConditionalGeneration(config)), processor)


def save_deepseek_vl_hybrid(folder):
    """DeepSeek-VL: SAM at high resolution beside SigLIP."""
    processor = DeepseekVLHybridProcessor(
        image_processor=DeepseekVLHybridImageProcessor(
            size={"height": 32, "width": 32}, high_res_size={"height": 64, "width": 64}
        ),
        tokenizer=byte_tokenizer(image_token="<image_placeholder>"),
        num_image_tokens=4,
        chat_template=CHATML_WITH.format(image="<image_placeholder>"),
    )
    sam = {"model_type": "sam_vision_model", "image_size": 64, "patch_size": 16, "mlp_dim": 64}
    sam |= {"window_size": 2, "global_attn_indexes": [0, 1], "output_channels": 8}
    siglip = {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 16}
    config = DeepseekVLHybridConfig(
        text_config=TEXT | ends(processor) | {"model_type": "llama"},
        vision_config=VISION | siglip | {"vision_use_head": False},
        high_res_vision_config=VISION | sam | {"num_pos_feats": 16},
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    model = redraw(DeepseekVLHybridForConditionalGeneration(config))
    model.model.high_res_vision_alpha.data.fill_(
        0.5
    )  # zero at the start: nothing behind it would train
    save(folder, model, processor)


def save_gemma3n(folder):
    """Gemma 3n: a MobileNet of convolutions that fuses its last stages; 256 tokens a picture."""
    names = ("boi", "boa", "eoi", "image", "eoa", "audio")
    tokenizer = byte_tokenizer(*(f"<{name}>" for name in names))  # in this order, and last
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token=tokenizer.pad_token,
        eos_token=tokenizer.eos_token,
        additional_special_tokens=["<|im_start|>"],
        **{f"{name}_token": f"<{name}>" for name in names},
    )
    words = tokenizer.convert_tokens_to_ids("<eoi>")  # from here on, the projectors embed tokens
    processor = Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(feature_size=16),
        image_processor=SiglipImageProcessor(size={"height": 64, "width": 64}),
        tokenizer=tokenizer,
        chat_template=CHATML_WITH.format(image="<image>"),
    )
    text = TEXT | ends(processor) | {"head_dim": 8, "num_kv_shared_layers": 0, "laurel_rank": 4}
    text |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": words}
    audio = {"hidden_size": 32, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2}
    audio |= {"input_feat_size": 16, "sscp_conv_channel_size": [4, 4]}
    token = tokenizer.convert_tokens_to_ids
    config = Gemma3nConfig(
        text_config=text | {"layer_types": ["sliding_attention", "full_attention"]},
        vision_config={"model_args": {"channel_multiplier": 0.0625}}
        | {"vocab_offset": words, "vocab_size": 2},
        audio_config=audio | {"vocab_offset": words + 2, "vocab_size": 2},
        boi_token_id=token("<boi>"),
        eoi_token_id=token("<eoi>"),
        image_token_id=token("<image>"),
        boa_token_id=token("<boa>"),
        eoa_token_id=token("<eoa>"),
        audio_token_id=token("<audio>"),
        tie_word_embeddings=False,
    )
    model = redraw(Gemma3nForConditionalGeneration(config))
    for name, parameter in model.named_parameters():
        if name.endswith(
            "correct_output_scale"
        ):  # zero at the start: no gate behind it would train
            parameter.data.fill_(0.5)
    save(folder, model, processor)
