"""Families with something of their own: cross-attention, Q-Formers, encoder-decoders, experts, tiles."""

from .any_size import (
    save_hunyuan_vl,
    save_minicpmv4_6,
    save_mistral3,
    save_paddleocr_vl,
    save_qwen2_5_omni,
)
from .common import Family
from .cross_attention import save_florence2, save_mllama
from .moe import save_ernie, save_glm4v_moe, save_kimi_k25, save_llama4
from .qformer import (
    DEAD_HALF,
    ONE_PICTURE,
    save_blip_2,
    save_instructblip,
    save_kosmos_2,
    save_kosmos_2_5,
)
from .several_features import (
    save_deepseek_vl_hybrid,
    save_gemma3n,
    save_granite4_vision,
    save_granite_docling,
    save_molmo2,
)

ODD: dict[str, Family] = {
    "mistral3": Family(save_mistral3),
    "mllama": Family(save_mllama),
    "blip-2": Family(save_blip_2, cannot=ONE_PICTURE),
    "instructblip": Family(save_instructblip, cannot=ONE_PICTURE | DEAD_HALF),
    # transformers counts the padding before a prompt as positions once the cache is used
    "kosmos-2": Family(save_kosmos_2, cannot=ONE_PICTURE | {"generates"}),
    # one picture, and one answer: the decoder's
    "florence2": Family(save_florence2, cannot=frozenset({"two pictures", "trains"})),
    "llama4": Family(save_llama4),
    "glm4v_moe": Family(save_glm4v_moe),
    "ernie4_5_vl_moe": Family(save_ernie),
    "kimi_k25": Family(save_kimi_k25),
    "paddleocr_vl": Family(save_paddleocr_vl),
    # transformers numbers pictures over the batch, not the conversation, in the fourth stream of positions
    "hunyuan_vl": Family(save_hunyuan_vl, cannot=frozenset({"generates"})),
    "minicpmv4_6": Family(save_minicpmv4_6),
    "molmo2": Family(save_molmo2),
    "granite4_vision": Family(save_granite4_vision),
    "granite_docling": Family(save_granite_docling),
    "deepseek_vl_hybrid": Family(save_deepseek_vl_hybrid),
    # the tower is convolutions alone: no linear layer for LoRA, which the checks' plan puts there
    "gemma3n": Family(
        save_gemma3n,
        cannot=frozenset(
            ("trains", "two pictures", "text only", "saves and loads", "nf4 language", "nf4 vision")
        ),
    ),
    "qwen2_5_omni_thinker": Family(save_qwen2_5_omni),
    "kosmos-2.5": Family(save_kosmos_2_5, cannot=ONE_PICTURE),
}
