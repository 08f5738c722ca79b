"""Where the vision tower, the projector and the language model live in a Hugging Face VLM."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from vlmpeft.errors import UnsupportedArchitecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPONENTS = ("vision", "projector", "language", "other")
PLANNED = COMPONENTS[:3]

# Children of the tower module that are the image-to-language path, not the tower.
_PROJECTORS_INSIDE_TOWER = (
    "merger",  # Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4V: `visual.merger` maps patches to text width
    "deepstack_merger_list",  # Qwen3-VL: features of inner tower layers, merged into early text layers
    "connector",  # Granite-Docling: `vision_model.connector`
)
# Towers beside the one that `get_encoder` names.
_SECOND_TOWERS = (
    "high_res_vision_model",
)  # DeepSeek-VL hybrid: SAM beside SigLIP, merged by its neck
# On no path from an image to text: other modalities, and Janus's image generator.
_OTHER = ("audio", "speech", "video_tower", "vqmodel", "generation_")


@dataclass(frozen=True)
class Components:
    """The components of one model as module (or parameter) names, and the partition they induce.

    A parameter belongs to the component of its longest matching root; one under no root is `other`.
    """

    roots: dict[str, tuple[str, ...]]
    parameter_names: tuple[str, ...]

    def component_of(self, name: str) -> str:
        """The component of a module or parameter of the model, by its full dotted name."""
        matches = [
            (len(root), component)
            for component, roots in self.roots.items()
            for root in roots
            if name == root or name.startswith(root + ".")
        ]
        return max(matches)[1] if matches else "other"

    def partition(self) -> dict[str, list[str]]:
        """Component -> its parameter names: total and disjoint; tied parameters once."""
        parts: dict[str, list[str]] = {component: [] for component in COMPONENTS}
        for name in self.parameter_names:
            parts[self.component_of(name)].append(name)
        return parts


def find_components(model: PreTrainedModel) -> Components:
    """Find vision, projector and language in any LLaVA- or Qwen-VL-like model, also on the meta device.

    Vision and language come from transformers' own `get_encoder(modality="image")` and `get_decoder()`;
    what is left on the image-to-language path is the projector.

    Raises:
        UnsupportedArchitecture: no image encoder, no decoder, or nothing between them.
    """
    names = {id(module): name for name, module in model.named_modules()}
    tower = _root_name(model, model.get_encoder(modality="image"), names, "image encoder")
    decoder = _root_name(model, model.get_decoder(), names, "language decoder")
    head = model.get_output_embeddings()
    heads = () if head is None or id(head) not in names else (names[id(head)],)
    language = (decoder, *(name for name in heads if not name.startswith(decoder + ".")))
    inside = tuple(
        name
        for name, _ in model.named_modules()
        if name.startswith(tower + ".") and name.rsplit(".", 1)[-1] in _PROJECTORS_INSIDE_TOWER
    )
    leftover = _leftover_roots(model, {tower, *language})
    other = tuple(root for root in leftover if any(word in root for word in _OTHER))
    towers = tuple(root for root in leftover if root.rsplit(".", 1)[-1] in _SECOND_TOWERS)
    projector = (*inside, *(root for root in leftover if root not in (*other, *towers)))
    if not projector:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} has no projector: nothing lies between {tower} and {decoder}"
        )
    roots = {
        "vision": (tower, *towers),
        "projector": projector,
        "language": language,
        "other": other,
    }
    return Components(roots, tuple(name for name, _ in model.named_parameters()))


def _root_name(model: nn.Module, found: nn.Module | None, names: dict[int, str], what: str) -> str:
    name = names.get(id(found), "")
    inner = {names.get(id(model)), "model", "model.model"}
    if found is None or (name in inner and not _is_leaf_model(found, model)):
        raise UnsupportedArchitecture(f"{type(model).__name__} has no {what} of its own")
    return name


def _is_leaf_model(found: nn.Module, model: nn.Module) -> bool:
    return found is not model and found is not getattr(model, "base_model", None)


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
