"""Whether an engine can load what a plan will leave, component by component, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies import Attachment
from vlmpeft.strategies.plan import AttachedPlan

Engine = Literal["peft", "vllm"]
ENGINES: tuple[Engine, ...] = ("peft", "vllm")

# vLLM 0.26, vllm/config/lora.py: the default of max_lora_rank, and the values it may have
_VLLM_RANK, _VLLM_RANKS = 16, (1, 8, 16, 32, 64, 128, 256, 320, 512)
MAX_RANK = _VLLM_RANKS[-1]


@dataclass(frozen=True)
class Verdict:
    """Whether an engine can load one component's part of an adapter.

    Args:
        is_loadable: whether it can.
        reason: why not, or what has to be switched on.
    """

    is_loadable: bool
    reason: str = ""


def judge(attached: AttachedPlan, engine: Engine, *, folded: bool = False) -> dict[str, Verdict]:
    """Component -> verdict, of every component that is trained or merged into.

    Args:
        attached: the plan on its model.
        engine: peft or vllm.
        folded: scales are multiplied into B before it is loaded, as `export` does, so unequal ones do not matter.
    """
    active = [a for a in attached.attachments if a.trainable or not a.strategy.trains]
    found: dict[str, Verdict] = {}
    for attachment in active:
        verdict = _peft(attachment) if engine == "peft" else _vllm(attachment)
        known = found.get(attachment.component, Verdict(True))
        reasons = "; ".join(reason for reason in (known.reason, verdict.reason) if reason)
        is_loadable = known.is_loadable and verdict.is_loadable
        found[attachment.component] = Verdict(is_loadable, reasons)
    lora = _lora_settings(active)
    if problem := _together(_scaled_alike(lora) if folded else lora, engine):
        for component in {a.component for a in active if a.peft and a.peft.lora}:
            found[component] = Verdict(False, problem)
    if engine == "peft" and found and not lora:
        for component, verdict in found.items():
            why = verdict.reason or "PEFT needs a LoRA part to carry saved modules"
            found[component] = Verdict(False, why)
    return found


def check_servable(attached: AttachedPlan, engine: Engine) -> None:
    """Refuse a plan whose adapter an engine could not load.

    Raises:
        UserError: names the components and why.
    """
    verdicts = judge(attached, engine)
    refused = {name: v.reason for name, v in verdicts.items() if not v.is_loadable}
    if refused:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UserError(
            f"model.serve_with={engine}, and {engine} cannot load what this plan leaves: {reasons}; change model.plan or "
            "leave serve_with out"
        )


def _lora_settings(active: list[Attachment]) -> dict[str, Mapping[str, Any]]:
    """Target -> what LoRA does there, over all components."""
    return {t: s for a in active if a.peft for t, s in a.peft.lora.items()}


def _scaled_alike(lora: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {t: {**s, "rslora": False, "alpha": s["r"]} for t, s in lora.items()}


def max_lora_rank(most: int) -> int:
    """What vLLM's --max-lora-rank has to be for a rank: the smallest value it may have, 8 or more."""
    return next(rank for rank in _VLLM_RANKS if rank >= max(most, 8))


def _peft(attachment: Attachment) -> Verdict:
    if attachment.peft is None:
        name = type(attachment.strategy).__name__
        return Verdict(
            False, f"{name} has no form in plain PEFT here; load it with vlmpeft.load_adapter"
        )
    return Verdict(True)


def _vllm(attachment: Attachment) -> Verdict:
    part, name = attachment.peft, type(attachment.strategy).__name__
    if part is None or not part.lora:
        return Verdict(
            False,
            f"vLLM loads LoRA alone, not {name} (modules_to_save); use LoRA, as lora_servable_r16.yaml does",
        )
    if any(settings["dora"] for settings in part.lora.values()):
        return Verdict(False, "vLLM refuses DoRA (vllm/lora/peft_helper.py)")
    most = max(settings["r"] for settings in part.lora.values())
    if most > MAX_RANK:
        return Verdict(False, f"r={most} is more than vLLM's largest max_lora_rank, {MAX_RANK}")
    wanted = []
    if most > _VLLM_RANK:
        wanted.append(f"--max-lora-rank {max_lora_rank(most)}")
    if attachment.component != "language":
        wanted.append(
            "--enable-tower-connector-lora, if vLLM has it for this model (vllm-project/vllm#31479)"
        )
    return Verdict(True, f"with {' and '.join(wanted)}" if wanted else "")


def _together(lora: Mapping[str, Mapping[str, Any]], engine: Engine) -> str:
    """What is wrong with all LoRA parts in one adapter."""
    if len({(s["dora"], s["rslora"]) for s in lora.values()}) > 1:
        return "one PEFT adapter is LoRA, DoRA or rsLoRA, not several of them"
    scales = {s["alpha"] / (s["r"] ** 0.5 if s["rslora"] else s["r"]) for s in lora.values()}
    if engine == "vllm" and len(scales) > 1:
        shown = ", ".join(f"{scale:g}" for scale in sorted(scales))
        return (
            f"vLLM reads one r and one alpha and would scale every target alike, silently; the scales are {shown}: "
            "give all the same alpha / r"
        )
    return ""
