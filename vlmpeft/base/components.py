"""Where the vision tower, the projector and the language model live in a Hugging Face VLM."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from vlmpeft.runtime.errors import UnsupportedArchitecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPONENTS = ("vision", "projector", "language", "other")
PLANNED = COMPONENTS[:3]

# What image towers are called: the names that transformers' `get_encoder(modality="image")` knows, and GIT's.
_TOWERS = (
    *("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower"),
    "image_encoder",
)
# Children of the tower module that stand after its last layer and lead to the language model.
_PROJECTORS_INSIDE_TOWER = (
    "merger",  # Qwen2-VL to Qwen3-VL, GLM-4V, dots3, Inkling 2: maps patches to text width
    "deepstack_merger_list",  # Qwen3-VL: features of inner tower layers, merged into early text layers
    "merger_list",  # the same in Qwen3-Omni
    "downsample",  # GLM-4V: a strided convolution to text width, before the merger
    *("downsampler1", "downsampler2"),  # Step 3.7: the same, before its projector
    "patch_merger",  # HunYuan-VL
    "connector",  # Granite-Docling
    "vision_adapter",  # Llama 4: pixel shuffle and MLP after `layernorm_post`
    "multi_modal_projector",  # PP-FormulaNet
    *("head_linear", "head_norm"),  # Ovis 2: how much of each row of the visual embedding table
)
# Towers beside the one that `get_encoder` names.
_SECOND_TOWERS = (
    "high_res_vision_model",
)  # DeepSeek-VL hybrid: SAM beside SigLIP, merged by its neck
# On no path from an image to text: other modalities, and Janus's image generator.
_OTHER = ("audio", "speech", "video_tower", "vqmodel", "generation_")
# Roots that module names do not tell, by `model_type`; `projector` relative to the tower.
_OVERRIDES: dict[str, dict[str, tuple[str, ...]]] = {
    # The decoder holds the tower; `freeze_text_layers` (modeling_idefics.py) says which layers are text. The gated
    # cross-attention between them was trained to join the two (Flamingo, section 2.2).
    "idefics": {"language": ("model.layers", "model.norm", "model.embed_tokens")},
    # The decoder holds the tower: one transformer reads projected patches and text (GIT, section 3.1).
    "git": {"language": ("git.encoder", "git.embeddings")},
    # A PaliGemma that an action expert attends to (pi0, section IV); that expert writes no text.
    "pi0": {
        "language": ("model.vlm.language_model",),
        "other": ("model.dit", "embed_action_time", "action_out_proj"),
    },
    # The tower's last layer is its "proj to text hidden dim" (modeling_inkling.py).
    "inkling_mm_model": {"projector": ("encoder_layers.-1", "final_norm")},
}


@dataclass(frozen=True)
class Components:
    """The components of one model as module (or parameter) names, and the partition they induce.

    A parameter belongs to the component of its longest matching root; one under no root is `other`.
    `head` is the output head's name, wherever in the language model it lies.
    """

    roots: dict[str, tuple[str, ...]]
    parameter_names: tuple[str, ...]
    head: str = ""

    def component_of(self, name: str) -> str:
        """The component of a module or parameter of the model, by its full dotted name."""
        matches = [
            (len(root), component)
            for component, roots in self.roots.items()
            for root in roots
            if name == root or name.startswith(root + ".")
        ]
        return max(matches)[1] if matches else "other"

    def kept_whole(self) -> tuple[str, ...]:
        """Modules that are not quantized with their component.

        The output head, as everywhere; patch embeddings, because towers cast pixels to the dtype of their
        weight (Ernie 4.5 VL), which is uint8 in 4 bits; and AltUp's coefficients, which Gemma 3n clips in place.
        """
        marks = ("patch_embed", "altup")
        whole = {n.rsplit(".", 1)[0] for n in self.parameter_names if any(m in n for m in marks)}
        return (*((self.head,) if self.head else ()), *sorted(whole))

    def partition(self) -> dict[str, list[str]]:
        """Component -> its parameter names: total and disjoint; tied parameters once."""
        parts: dict[str, list[str]] = {component: [] for component in COMPONENTS}
        for name in self.parameter_names:
            parts[self.component_of(name)].append(name)
        return parts


def find_components(model: PreTrainedModel) -> Components:
    """Find vision, projector and language in any LLaVA- or Qwen-VL-like model, also on the meta device.

    Vision and language come from transformers' own `get_encoder(modality="image")` and `get_decoder()`;
    what is left on the image-to-language path is the projector. The first roots of vision and language are
    the tower and the decoder.

    Raises:
        UnsupportedArchitecture: no image encoder, no decoder, or nothing between them.
    """
    override = _OVERRIDES.get(getattr(model.config, "model_type", ""), {})
    tower = _tower(model)
    language = _language(model, tower, override)
    leftover = _leftover_roots(model, {tower, *language})
    embeddings = _name_of(model, _embeddings(model))
    texts = [_widest(root, tower) for root in (*language, embeddings) if root]
    more = tuple(root for root in leftover if _is_under(root, texts))
    rest = [root for root in leftover if root not in more]
    towers = tuple(root for root in rest if root.rsplit(".", 1)[-1] in _SECOND_TOWERS)
    other = tuple(root for root in rest if _is_other(root, override))
    path = tuple(root for root in rest if root not in (*towers, *other))
    projector = (*_projectors_inside(model, tower, override), *path)
    if not projector:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} has no projector: nothing lies between {tower} and {language[0]}"
        )
    roots = {
        "vision": (tower, *towers),
        "projector": projector,
        "language": (*language, *more),
        "other": other,
    }
    parameter_names = tuple(name for name, _ in model.named_parameters())
    return Components(roots, parameter_names, _name_of(model, model.get_output_embeddings()))


def _tower(model: PreTrainedModel) -> str:
    """The image tower's name: what `get_encoder` finds, or the tower in it; else a pixel-to-text model's encoder."""
    found = _name_of(model, model.get_encoder(modality="image"))
    if found.rsplit(".", 1)[-1] in _TOWERS:
        return found
    for name, _ in model.named_modules():  # outermost first
        if _is_under(name, [found]) and name.rsplit(".", 1)[-1] in _TOWERS:
            return name
    encoder = _name_of(model, model.get_encoder())
    if model.main_input_name not in ("pixel_values", "flattened_patches") or not encoder:
        raise UnsupportedArchitecture(f"{type(model).__name__} has no image encoder of its own")
    return encoder


def _language(
    model: PreTrainedModel, tower: str, override: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The decoder, and the output head if it lies outside."""
    roots = override.get("language", (_name_of(model, model.get_decoder()),))
    if not roots[0] or _is_under(tower, roots):
        raise UnsupportedArchitecture(f"{type(model).__name__} has no language decoder of its own")
    head = _name_of(model, model.get_output_embeddings())
    return (*roots, head) if head and not _is_under(head, roots) else roots


def _projectors_inside(
    model: PreTrainedModel, tower: str, override: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """What belongs to the projector although it lies in the tower's module."""
    module = model.get_submodule(tower)
    children = tuple(name for name, _ in module.named_children())
    found = tuple(name for name in children if name in _PROJECTORS_INSIDE_TOWER)
    said = override.get("projector", ())
    return tuple(_name_of(model, _submodule(module, name)) for name in (*found, *said))


def _submodule(module: nn.Module, path: str) -> nn.Module:
    """`get_submodule` that also takes `layers.-1`."""
    *outer, last = path.split(".")
    parent = module.get_submodule(".".join(outer))
    return list(parent.children())[-1] if last == "-1" else parent.get_submodule(last)


def _name_of(model: nn.Module, module: nn.Module | None) -> str:
    """A module's full name; empty for None, the model itself and what is no part of it."""
    return next((name for name, found in model.named_modules() if found is module), "")


def _embeddings(model: PreTrainedModel) -> nn.Module | None:
    """The token embeddings; None where a class does not say (PP-FormulaNet)."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _is_under(name: str, roots: Collection[str]) -> bool:
    return any(not root or name == root or name.startswith(root + ".") for root in roots)


def _is_other(root: str, override: dict[str, tuple[str, ...]]) -> bool:
    return any(word in root for word in _OTHER) or root in override.get("other", ())


def _widest(name: str, tower: str) -> str:
    """The highest module around a module that does not hold the tower: a T5's `shared` and `encoder` are text too."""
    parts = name.split(".")
    prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return next(prefix for prefix in prefixes if not _is_under(tower, [prefix]))


def _leftover_roots(model: nn.Module, taken: set[str]) -> tuple[str, ...]:
    """The highest modules (or bare parameters) that hold parameters and contain no taken root."""

    def contains_taken(name: str) -> bool:
        return any(root == name or root.startswith(name + ".") for root in taken)

    roots: dict[str, None] = {}
    for name, _ in model.named_parameters():
        if any(name.startswith(root + ".") for root in taken):
            continue
        parts = name.split(".")
        prefixes = (".".join(parts[: i + 1]) for i in range(len(parts)))
        roots.setdefault(next(prefix for prefix in prefixes if not contains_taken(prefix)), None)
    return tuple(roots)


def count_by_component(model: nn.Module, components: Components) -> dict[str, int]:
    """Logical parameters a component: tied tensors once, packed 4-bit tensors at their logical size."""
    counts: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        counts[components.component_of(name)] += logical_size(parameter)
    return {component: counts[component] for component in COMPONENTS}


def logical_size(parameter: nn.Parameter) -> int:
    """Number of weights a parameter stands for; `numel()` of a packed 4-bit tensor is half of it."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()
