import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText

from vlmpeft.components import COMPONENTS, count_by_component, find_components
from vlmpeft.errors import UnsupportedArchitecture

FAMILIES = {
    "llava": "model.multi_modal_projector",
    "llava_next": "model.multi_modal_projector",
    "llava_onevision": "model.multi_modal_projector",
    "qwen2_vl": "model.visual.merger",
    "qwen2_5_vl": "model.visual.merger",
    "qwen3_vl": "model.visual.merger",
}


def _on_meta(model_type):
    config = transformers.AutoConfig.for_model(model_type)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_partition_is_total_and_disjoint(model_type):
    model = _on_meta(model_type)
    parts = find_components(model).partition()
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len(names) == len(set(names))
    assert set(parts) == set(COMPONENTS)
    assert all(parts[name] for name in ("vision", "projector", "language"))


@pytest.mark.parametrize(("model_type", "root"), FAMILIES.items())
def test_projector_is_found_also_inside_the_tower(model_type, root):
    components = find_components(_on_meta(model_type))
    assert root in components.roots["projector"]
    assert components.component_of(f"{root}.anything.weight") == "projector"


def test_qwen3_deepstack_mergers_are_projector():
    components = find_components(_on_meta("qwen3_vl"))
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
        ("granite_docling", "model.vision_model.connector.x", "projector"),
        ("qwen2_5_omni_thinker", "model.audio_tower.x", "other"),
    ],
)
def test_second_towers_generators_and_other_modalities(model_type, name, component):
    assert find_components(_on_meta(model_type)).component_of(name) == component


@pytest.mark.slow
def test_every_type_that_builds_is_partitioned_or_refused_with_a_reason():
    """Of the types of the installed transformers; those that do not build from their default config are skipped."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    partitioned, refused = [], {}
    for model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        try:
            model = _on_meta(model_type)
        except Exception:  # noqa: BLE001  a default config that its own class cannot build
            continue
        try:
            parts = find_components(model).partition()
        except UnsupportedArchitecture as error:
            refused[model_type] = str(error)
            continue
        names = [name for part in parts.values() for name in part]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters()), model_type
        assert all(parts[name] for name in ("vision", "projector", "language")), model_type
        partitioned.append(model_type)
    assert len(partitioned) >= 70, refused
    assert all("has no" in reason for reason in refused.values())


def test_bare_parameter_on_the_image_path_is_projector():
    components = find_components(_on_meta("llava_next"))
    assert components.component_of("model.image_newline") == "projector"


def test_output_head_is_language():
    assert find_components(_on_meta("llava")).component_of("lm_head.weight") == "language"


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
