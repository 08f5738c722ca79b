import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText

from vlmpeft.base.components import COMPONENTS, count_by_component, find_components
from vlmpeft.runtime.errors import UnsupportedArchitecture

FAMILIES = {
    "llava": "model.multi_modal_projector",
    "llava_next": "model.multi_modal_projector",
    "llava_onevision": "model.multi_modal_projector",
    "qwen2_vl": "model.visual.merger",
    "qwen2_5_vl": "model.visual.merger",
    "qwen3_vl": "model.visual.merger",
}

# What types need beside their defaults to be built with a picture's path: a config that its own class cannot build, a
# tower that is None by default, or widths that call for a projector.
CONFIGS = {
    "aya_vision": {  # 14 heads do not divide the default width
        "vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 16}
    },
    "chameleon": {"vocabulary_map": {"<image>": 8711}},  # no default
    "cohere_compass": {  # no default
        "text_config": {
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
        }
    },
    "deepseek_ocr2": {  # no default
        "text_config": {"mlp_layer_types": ["dense"] * 32, "num_experts_per_tok": 6}
    },
    "diffusion_gemma": {  # no default
        "text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64}
    },
    "emu3": {"vocabulary_map": {"<image>": 151851}},  # no default
    "gemma4": {  # text only by default
        "vision_config": {"model_type": "gemma4_vision"},
        "audio_config": {"model_type": "gemma4_audio"},
    },
    "gemma4_unified": {"vision_config": {"model_type": "gemma4_unified_vision"}},  # text only
    "granite4_vision": {  # no default
        "deepstack_layer_map": [[-19, 9], [-13, 6]],
        "downsample_rate": "1/4",
    },
    "hunyuan_vl": {"text_config": {"head_dim": 128}},  # no default
    "perception_lm": {  # timm's default architecture is no ViT
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": {"embed_dim": 1024, "depth": 2},
        }
    },
    "qwen4_exp": {  # no default
        "text_config": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 256,
            "indexer_budget": 2048,
            "indexer_compress_ratio": 4,
        }
    },
    "vision-encoder-decoder": {  # a projector stands only between unequal widths
        "encoder": {"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6},
        "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
    },
}

REFUSED = {
    "blip": "no projector",  # its decoder attends to the tower's states as they are
    "chameleon": "no image encoder",  # pictures are discrete tokens: no gradient reaches the VQ-VAE
    "emu3": "no image encoder",  # the same
    "evolla": "no image encoder",  # proteins
    "fuyu": "no image encoder",  # one Linear on raw patches
    "gemma4_unified": "no image encoder",  # the same with a position table
    "mistral4": "no image encoder",  # the text model alone
    "pix2struct": "no projector",  # as blip
    "udop": "no image encoder",  # one transformer over words and raw patches
}

# vision | projector | language | other, as read in each type's modelling file.
LM = "model.language_model lm_head"
EXPECTED = {
    f"model.vision_tower | model.multi_modal_projector | {LM}": (
        "aria aya_vision cohere2_vision fast_vlm florence2 gemma3 got_ocr2 internvl lfm2_vl "
        "lfm3_vl llava minimax_m3_vl mistral3 mistral_large4 molmo2 paligemma perception_lm "
        "pp_chart2table qianfan_ocr shieldgemma2 vipllava"
    ),
    f"model.visual | model.visual.merger model.visual.downsample | {LM}": "glm46v glm4v glm4v_moe glm5_next glm_ocr glmga",
    f"model.visual | model.visual.merger | {LM}": "exaone4_5 qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen4_exp",
    f"model.visual | model.visual.merger model.visual.deepstack_merger_list | {LM}": "cohere_compass cosmos3_omni qwen3_vl qwen3_vl_moe",
    "model.vision_model | model.connector | model.text_model lm_head": "idefics2 idefics3 smolvlm",
    f"model.vision_tower | model.image_newline model.multi_modal_projector | {LM}": "llava_next llava_next_video llava_onevision",
    f"model.vision_tower | model.merger | {LM}": "minicpm_ocr minicpmv4_6 minicpmv4_7",
    f"model.vision_tower | model.embed_vision | {LM} | model.audio_tower model.embed_audio": "gemma3n gemma4",
    f"model.visual | model.projector | {LM}": "cosmos3_edge paddleocr_vl",
    "vision_model | image_to_text_projection | text_model": "kosmos-2 kosmos-2.5",
    (
        "vision_model | query_tokens qformer language_projection | "
        "language_model.model.decoder language_model.lm_head"
    ): "instructblip instructblipvideo",
    "encoder | enc_to_dec_proj | decoder": "vision-encoder-decoder",
    "git.image_encoder | git.visual_projection | git.encoder git.embeddings output": "git",
    "model.encoder | model.encoder.multi_modal_projector | model.decoder lm_head": "pp_formulanet",
    (
        "model.encoder.vision_tower | model.encoder.embed_vision | model.decoder lm_head "
        "model.encoder.language_model"
    ): "diffusion_gemma",
    (
        "model.encoder.vision_tower | model.encoder.multi_modal_projector | model.decoder "
        "lm_head.out_proj model.encoder.text_model"
    ): "t5gemma2",
    f"model.image_tower | model.multi_modal_projector | {LM} | model.video_tower": "video_llava",
    f"model.vision_encoder | model.vision_projection | {LM}": "lighton_ocr",
    (
        "model.vision_model model.high_res_vision_model | model.high_res_vision_alpha "
        f"model.high_res_vision_neck model.high_res_vision_proj model.aligner | {LM}"
    ): "deepseek_vl_hybrid",
    f"model.vision_model | model.aligner | {LM}": "deepseek_vl",
    (
        f"model.vision_model | model.aligner | {LM} | model.vqmodel "
        "model.generation_embeddings model.generation_aligner model.generation_head"
    ): "janus",
    (
        "model.vision_model | model.gated_cross_attn_layers | model.layers model.norm "
        "model.embed_tokens lm_head"
    ): "idefics",
    f"model.vision_model | model.multi_modal_projector | {LM}": "mllama",
    f"model.vision_model | model.projector | {LM}": "video_llama_3",
    "model.vision_model | model.vision_model.connector | model.text_model lm_head": "granite_docling",
    (
        "model.vision_model | model.vision_model.downsampler1 "
        f"model.vision_model.downsampler2 model.multi_modal_projector | {LM}"
    ): "step3p7",
    f"model.vision_model | model.vision_model.merger model.projector | {LM}": "hyperclovax_vision_v2",
    (
        "model.vision_tower | model.image_newline model.layerwise_projectors "
        f"model.spatial_projectors | {LM}"
    ): "granite4_vision",
    f"model.vision_tower | model.mm_projector | {LM}": "kimi_k25",
    f"model.vision_tower | model.resampler_model | {LM}": "ernie4_5_vl_moe",
    (
        "model.vision_tower | model.view_separator model.image_newline "
        f"model.multi_modal_projector | {LM}"
    ): "unlimited_ocr",
    f"model.vision_tower | model.view_separator model.multi_modal_projector | {LM}": "deepseek_ocr2",
    f"model.vision_tower | model.vision_adapter model.vision_projection | {LM}": "muse_glimmer",
    (
        f"model.vision_tower | model.vision_adapter model.vision_projection | {LM} | "
        "model.audio_tower"
    ): "muse_spark",
    (
        "model.vision_tower | model.vision_tower.encoder_layers.23 "
        f"model.vision_tower.final_norm | {LM} | model.audio_tower"
    ): "inkling_mm_model",
    (
        "model.vision_tower | model.vision_tower.head_linear model.vision_tower.head_norm "
        f"model.visual_embeddings_table | {LM}"
    ): "ovis2",
    f"model.vision_tower | model.vision_tower.merger | {LM}": "inkling2",
    f"model.vision_tower | model.vision_tower.merger | {LM} | model.audio_tower": "dots3_note",
    f"model.vision_tower | model.vision_tower.patch_merger | {LM}": "hunyuan_vl",
    f"model.visual | model.visual.merger | {LM} | model.audio_tower": "qwen2_5_omni_thinker",
    (
        f"model.visual | model.visual.merger_list model.visual.merger | {LM} | model.audio_tower"
    ): "qwen3_omni_moe_thinker",
    (
        "model.vlm.vision_tower | model.vlm.multi_modal_projector | model.vlm.language_model "
        "| model.dit embed_action_time action_out_proj"
    ): "pi0",
    "vision_model | multi_modal_projector | language_model": "nemotron_h_omni",
    "vision_model | query_tokens qformer language_projection | language_model": "blip-2",
    "vision_model | vision_model.vision_adapter multi_modal_projector | language_model": "llama4",
}


def _build(model_type):
    """A type on the meta device, as AutoModelForImageTextToText would; Evolla is in its table under no config."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = transformers.AutoConfig.for_model(model_type, **CONFIGS.get(model_type, {}))
    with torch.device("meta"):
        if model_type == "evolla":
            return getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["evolla"])(
                config
            )
        return AutoModelForImageTextToText.from_config(config)


def _is_partition(parts, model):
    names = [name for part in parts.values() for name in part]
    return sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_partition_is_total_and_disjoint(model_type):
    model = _build(model_type)
    parts = find_components(model).partition()
    assert _is_partition(parts, model)
    assert set(parts) == set(COMPONENTS)
    assert all(parts[name] for name in ("vision", "projector", "language"))


@pytest.mark.parametrize(("model_type", "root"), FAMILIES.items())
def test_projector_is_found_also_inside_the_tower(model_type, root):
    components = find_components(_build(model_type))
    assert root in components.roots["projector"]
    assert components.component_of(f"{root}.anything.weight") == "projector"


def test_qwen3_deepstack_mergers_are_projector():
    components = find_components(_build("qwen3_vl"))
    name = "model.visual.deepstack_merger_list.0.linear_fc1.weight"
    assert components.component_of(name) == "projector"


@pytest.mark.parametrize(
    ("model_type", "name", "component"),
    [
        ("deepseek_vl_hybrid", "model.high_res_vision_model.x", "vision"),
        ("deepseek_vl_hybrid", "model.high_res_vision_neck.x", "projector"),
        ("janus", "model.vqmodel.x", "other"),
        ("janus", "model.generation_head.x", "other"),
        ("janus", "model.aligner.x", "projector"),
        ("video_llava", "model.video_tower.x", "other"),
        ("qwen3_omni_moe_thinker", "model.visual.merger_list.0.x", "projector"),
        ("glm4v", "model.visual.downsample.x", "projector"),
        ("glm4v", "model.visual.post_layernorm.x", "vision"),
        ("granite_docling", "model.vision_model.connector.x", "projector"),
        ("qwen2_5_omni_thinker", "model.audio_tower.x", "other"),
    ],
)
def test_second_towers_generators_and_other_modalities(model_type, name, component):
    assert find_components(_build(model_type)).component_of(name) == component


EXPECTED_OF = {name: roots for roots, names in EXPECTED.items() for name in names.split()}


@pytest.mark.slow
def test_every_type_of_the_installed_transformers_is_expected_or_refused():
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    assert EXPECTED_OF.keys().isdisjoint(REFUSED)
    assert EXPECTED_OF.keys() | REFUSED.keys() == set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", EXPECTED_OF)
def test_a_type_is_partitioned_as_its_modelling_file_says(model_type):
    model = _build(model_type)
    components = find_components(model)
    expected = [tuple(part.split()) for part in EXPECTED_OF[model_type].split("|")]
    expected += [()] * (len(COMPONENTS) - len(expected))
    assert components.roots == dict(zip(COMPONENTS, expected, strict=True))
    parts = components.partition()
    assert _is_partition(parts, model)
    assert all(parts[name] for name in COMPONENTS[:3])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if model_type != "pp_formulanet":  # does not say what its token embeddings are
        embedding = names[id(model.get_input_embeddings().weight)]
        assert components.component_of(embedding) == "language"


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "reason"), REFUSED.items())
def test_a_type_without_the_three_parts_is_refused_with_the_reason(model_type, reason):
    with pytest.raises(UnsupportedArchitecture, match=f"has {reason}"):
        find_components(_build(model_type))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["blip-2", "instructblip"])
def test_the_encoder_of_an_encoder_decoder_is_language_too(model_type):
    """Both take an OPT or a T5 (FlanT5 in the papers)."""
    config = transformers.AutoConfig.for_model(model_type, text_config={"model_type": "t5"})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    components = find_components(model)
    assert _is_partition(components.partition(), model)
    for name in ("shared", "encoder.block.0", "decoder.block.0", "lm_head"):
        assert components.component_of(f"language_model.{name}.x") == "language"


def test_bare_parameter_on_the_image_path_is_projector():
    components = find_components(_build("llava_next"))
    assert components.component_of("model.image_newline") == "projector"


def test_output_head_is_language():
    assert find_components(_build("llava")).component_of("lm_head.weight") == "language"


def test_text_model_is_refused():
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=1))
    with pytest.raises(UnsupportedArchitecture, match="image encoder"):
        find_components(model)


def test_packed_weights_count_at_their_logical_size(tiny, tiny_nf4):
    plain, packed = (
        count_by_component(model, components) for model, _, components in (tiny, tiny_nf4)
    )
    assert plain == packed
    assert sum(plain.values()) == sum(p.numel() for p in tiny[0].parameters())
