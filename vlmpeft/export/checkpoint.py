"""A checkpoint that needs no adapter: dW added to a base's weights, and the folder it is written to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmpeft.adapters.peft_form import PREFIX
from vlmpeft.base.fingerprint import weight_files
from vlmpeft.base.loading import load_config
from vlmpeft.base.quantization import requantized
from vlmpeft.base.spec import DTYPES, BaseSpec
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.deltas import dequantized
from vlmpeft.strategies.low_rank import Delta, dense
from vlmpeft.strategies.plan import AttachedPlan

REPORT = "export.json"


def stored_width(spec: BaseSpec) -> str:
    """The width of the checkpoint's own weights: fp32, bf16 or fp16.

    Raises:
        UserError: they are quantized, or of another type.
    """
    config = load_config(spec)
    if quantized := getattr(config, "quantization_config", None):
        method = dict(quantized).get("quant_method", "some method")
        raise UserError(
            f"base {spec.path} is stored quantized ({method}), so there are no whole weights to merge into; give the one it "
            "was made from: --base PATH"
        )
    dtype = config.dtype or config.get_text_config().dtype or _first_dtype(spec)
    names = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    name = str(dtype).removeprefix("torch.")
    if name not in names:
        raise UserError(
            f"base {spec.path} is stored in {name}; a merge needs one of {', '.join(names)}"
        )
    return names[name]


def _first_dtype(spec: BaseSpec) -> torch.dtype:
    from safetensors import safe_open

    with safe_open(weight_files(spec)[0], framework="pt") as tensors:
        found = (tensors.get_tensor(name) for name in tensors.keys())  # noqa: SIM118  no mapping
        return next(tensor.dtype for tensor in found if tensor.is_floating_point())


@torch.no_grad()
def add_to_weights(model: Any, deltas: Mapping[str, Delta]) -> None:
    """Add dW to a model's weights; a quantized layer is quantized again, a head tied to embeddings gets its own weight.

    Args:
        model: the base, with nothing attached.
        deltas: parameter -> dW. A name that only `named_parameters(remove_duplicate=False)` has is one module's share of
            a tied weight: that module alone changed.
    """
    own = dict(model.named_parameters())
    if alone := [name for name in deltas if name not in own]:
        untie(model)
        own = dict(model.named_parameters())
        assert own.keys() >= set(alone), alone
    for name, delta in deltas.items():
        parameter = own[name]
        if parameter.is_floating_point():
            whole = parameter.data.float() + dense(delta).to(parameter.device)
            parameter.data = whole.to(parameter.dtype)
        else:
            replace_weight(model, name, delta)


def replace_weight(model: Any, name: str, delta: Delta) -> None:
    """Quantize a layer again, of its weight + dW."""
    parent, _, leaf = name.removesuffix(".weight").rpartition(".")
    layer = model.get_submodule(name.removesuffix(".weight"))
    weight = dequantized(layer)
    setattr(
        model.get_submodule(parent),
        leaf,
        requantized(layer, weight + dense(delta).to(weight.device)),
    )


def untie(model: Any) -> None:
    """Give every module that shares a weight one of its own."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if first[id(parameter)] != name:
            owner, _, leaf = name.rpartition(".")
            copy = nn.Parameter(parameter.data.clone(), requires_grad=False)
            model.get_submodule(owner).register_parameter(leaf, copy)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def write_checkpoint(
    folder: Path, model: Any, processor: Any, limits: Any, max_shard_size: str
) -> None:
    """Weights, config, generation config and processor.

    Args:
        folder: exists.
        model: merged.
        processor: with the adapter's chat template.
        limits: when answers end, which `generate` then does by itself.
        max_shard_size: of a safetensors file, e.g. 5GB.
    """
    set_limits(model.generation_config, limits)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)


def set_limits(settings: Any, limits: Any) -> None:
    """Make `generate` end answers as the adapter's scored answers did.

    Args:
        settings: a generation config.
        limits: when answers end.
    """
    settings.eos_token_id, settings.pad_token_id = list(limits.end_ids), limits.pad_id
    settings.max_new_tokens = limits.max_new_tokens
    if not settings.do_sample:  # transformers refuses to save settings that have no effect
        settings.temperature = settings.top_p = settings.top_k = settings.min_p = None


def find_carriers(
    attached: AttachedPlan, tensors: Mapping[str, Any], changed: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Trained tensor, by its name in the adapter -> the changed parameters that carry it.

    Args:
        attached: the adapter's plan.
        tensors: of its manifest.
        changed: parameters with a dW.
    """
    targets = {target for a in attached.attachments for target in a.targets}
    found = {}
    for name in tensors:
        bare = name.removeprefix(PREFIX)
        homes = [t for t in targets if bare.startswith(f"{t}.")]
        home = max(homes, key=len, default=bare.rpartition(".")[0])
        own = [bare] if bare in changed else [n for n in changed if n.rpartition(".")[0] == home]
        found[name] = own
    return found


def write_report(folder: Path, report: Mapping[str, Any], card: str) -> None:
    """`export.json` and README.md."""
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    (folder / "README.md").write_text(card)
