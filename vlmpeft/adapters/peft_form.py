"""An adapter as plain PEFT has it: names of tensors, its config, and whether PEFT can carry all of it."""

from __future__ import annotations

from typing import Any

from vlmpeft.strategies.plan import AttachedPlan

PREFIX = "base_model.model."  # of PEFT's tensor names
PEFT_WEIGHTS = "adapter_model.safetensors"


def is_expressible_in_peft(attached: AttachedPlan) -> bool:
    """Whether plain PEFT can load all of it: needs a LoRA part of one kind, and a PEFT form for the rest."""
    active = [a for a in attached.attachments if a.trainable or not a.strategy.trains]
    parts = [attachment.peft for attachment in active]
    kinds = {
        (settings["rslora"], settings["dora"])
        for part in parts
        for settings in (part.lora.values() if part else ())
    }
    return all(parts) and len(kinds) == 1


def peft_config(attached: AttachedPlan, base_id: str) -> dict[str, Any]:
    """PEFT's adapter_config.json, with target modules as full paths.

    PEFT itself would shorten them to suffixes such as q_proj, which also exist in the vision tower.
    """
    from peft import LoraConfig

    parts = [attachment.peft for attachment in attached.attachments if attachment.peft]
    lora = {target: settings for part in parts for target, settings in part.lora.items()}
    first = next(iter(lora.values()))
    config = LoraConfig(
        r=int(first["r"]),
        lora_alpha=first["alpha"],  # type: ignore[arg-type]
        rank_pattern={t: s["r"] for t, s in lora.items() if s["r"] != first["r"]},
        alpha_pattern={t: s["alpha"] for t, s in lora.items() if s["alpha"] != first["alpha"]},
        use_rslora=bool(first["rslora"]),
        use_dora=bool(first["dora"]),
        modules_to_save=[module for part in parts for module in part.modules_to_save] or None,
        base_model_name_or_path=base_id,
        inference_mode=True,
    ).to_dict()
    return config | {"target_modules": list(lora)}
