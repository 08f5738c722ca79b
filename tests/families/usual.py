"""Families whose pictures become tokens of an ordinary decoder: the LLaVA line, Qwen-VL, SmolVLM, Gemma, InternVL, ..."""

from .common import Family
from .free_shape import save_exaone4_5, save_lfm2_vl, save_lighton_ocr, save_video_llama_3
from .gemma import save_gemma3, save_paligemma
from .glm import save_glm4v, save_glm46v
from .idefics import save_idefics2, save_idefics3, save_smolvlm
from .llava_line import (
    save_llava,
    save_llava_next,
    save_llava_onevision,
    save_video_llava,
    save_vipllava,
)
from .qwen import save_qwen, save_qwen2_vl, save_qwen3_5, save_qwen3_vl, save_qwen3_vl_moe
from .single_scale import save_aria, save_deepseek_vl, save_got_ocr2, save_janus
from .tiles import save_aya_vision, save_cohere2_vision, save_internvl, save_ovis2
from .timm_towers import save_fast_vlm, save_perception_lm, save_perception_lm_in_one_tile

# transformers stacks pictures by tiles, so those in one batch need equally many; `vanilla` has one each
UNEQUAL_TILES = frozenset(
    {"trains", "two pictures", "saves and loads", "generates", "nf4 language", "nf4 vision"}
)

USUAL = {
    "llava": Family(save_llava),
    "llava_next": Family(save_llava_next),
    "llava_onevision": Family(save_llava_onevision),
    "vipllava": Family(save_vipllava),
    "video_llava": Family(save_video_llava),
    "qwen2_vl": Family(save_qwen2_vl),
    "qwen2_5_vl": Family(save_qwen),
    "qwen3_vl": Family(save_qwen3_vl),
    "qwen3_vl_moe": Family(save_qwen3_vl_moe),
    "qwen3_5": Family(save_qwen3_5),
    "idefics2": Family(save_idefics2),
    "idefics3": Family(save_idefics3),
    "smolvlm": Family(save_smolvlm),
    # its processor takes no text without a picture
    "paligemma": Family(save_paligemma, cannot=frozenset({"text only"})),
    "gemma3": Family(save_gemma3),
    "internvl": Family(save_internvl),
    "glm4v": Family(save_glm4v),
    "glm46v": Family(save_glm46v),
    "ovis2": Family(save_ovis2),
    "aya_vision": Family(save_aya_vision),
    "cohere2_vision": Family(save_cohere2_vision),
    "lfm2_vl": Family(save_lfm2_vl),
    "lighton_ocr": Family(save_lighton_ocr),
    "exaone4_5": Family(save_exaone4_5),
    "video_llama_3": Family(save_video_llama_3),
    "deepseek_vl": Family(save_deepseek_vl),
    "janus": Family(save_janus),
    "aria": Family(save_aria),
    # its processor takes no text without a picture
    "got_ocr2": Family(save_got_ocr2, cannot=frozenset({"text only"})),
    "fast_vlm": Family(save_fast_vlm),
    "perception_lm": Family(save_perception_lm, cannot=UNEQUAL_TILES),
    "perception_lm_one_tile": Family(save_perception_lm_in_one_tile),
}
