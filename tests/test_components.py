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
