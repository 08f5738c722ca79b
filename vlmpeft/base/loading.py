"""The pretrained VLM: loaded, frozen and quantized by component."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmpeft.base.components import Components, count_by_component, find_components
from vlmpeft.base.quantization import keep_int8_statistics, quantize_linears, silence_casts
from vlmpeft.base.spec import DTYPES, NUM_BITS, QUANTIZED, BaseSpec, base_dir, resolve_bits
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.own_code import refuse_adapter, refuse_own_code
from vlmpeft.runtime.private_apis import keep_4bit_as_stored
from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops


def load_config(spec: BaseSpec) -> Any:
    """The base's transformers config, checked to be an image-text-to-text model."""
    declare_torchvision_ops()
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = _from_hub(AutoConfig.from_pretrained, spec)
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            f"base {spec.path} is a {config.model_type!r} model, not a vision-language model that "
            "AutoModelForImageTextToText knows"
        )
    return config


def load_processor(spec: BaseSpec) -> Any:
    """Tokenizer and image processor of the base."""
    declare_torchvision_ops()
    from transformers import AutoProcessor

    processor = _from_hub(AutoProcessor.from_pretrained, spec)
    if not hasattr(processor, "tokenizer"):
        raise UserError(
            f"base {spec.path} has no processor with a tokenizer (processor_config.json)"
        )
    return processor


def meta_model(spec: BaseSpec) -> Any:
    """The base's module tree without weights, in milliseconds; needs its config.json only."""
    from transformers import AutoModelForImageTextToText

    config = load_config(spec)
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # a config from elsewhere: whatever transformers stumbles over
        raise UserError(
            f"base {spec.path}: no model can be built by its config: {' '.join(str(error).split())[:300]}"
        ) from error


def load_base(spec: BaseSpec, device: torch.device | str = "cpu") -> tuple[Any, Any, Components]:
    """Load (model, processor, components): frozen, in eval mode, each component at its width.

    Frozen by `requires_grad_(False)` alone: peft's `prepare_model_for_kbit_training` would upcast what is
    not quantized to fp32 (bitsandbytes#1569).
    """
    from transformers import AutoModelForImageTextToText

    device = torch.device(device)
    widths = resolve_bits(spec.bits, device)
    components = find_components(meta_model(spec))
    model = _from_hub(
        AutoModelForImageTextToText.from_pretrained,
        spec,
        dtype=_plain_dtype(device),
        device_map={"": device},
        use_safetensors=True,  # a pickle can run code
        quantization_config=quantization_config(spec, widths, components, device),
    )
    main, compute = _main_quantized(spec, widths), compute_dtype(spec, device)
    for name, width in widths.items():
        if width in QUANTIZED and width != main:
            quantize_linears(model, components, name, width, spec.double_quant, compute)
            # tells PEFT that there are such layers
            setattr(model, f"is_loaded_in_{NUM_BITS[width]}bit", True)
    _set_unquantized_dtypes(model, widths, components)
    keep_4bit_as_stored(model)
    keep_int8_statistics(model)
    silence_casts()
    model.requires_grad_(False).eval()
    return model, load_processor(spec), components


def _plain_dtype(device: torch.device) -> torch.dtype:
    return DTYPES["fp32" if device.type == "cpu" else "bf16"]


def compute_dtype(spec: BaseSpec, device: torch.device) -> torch.dtype:
    """In what 4-bit layers multiply."""
    return _plain_dtype(device) if spec.compute == "auto" else DTYPES[spec.compute]


def _main_quantized(spec: BaseSpec, widths: dict[str, str]) -> str | None:
    """The quantized width of most weights: those are never loaded whole."""
    wanted = {width for width in widths.values() if width in QUANTIZED}
    if len(wanted) < 2:
        return next(iter(wanted), None)
    sizes = parameter_count(spec)
    return max(wanted, key=lambda width: sum(sizes[c] for c, w in widths.items() if w == width))


def quantization_config(
    spec: BaseSpec, widths: dict[str, str], components: Components, device: torch.device
) -> Any:
    """A BitsAndBytesConfig for the components of the main quantized width; None without one.

    Everything else is skipped by its full path: a bare `vision_tower` would silently quantize the tower,
    and an explicit list drops the default skip of the output head, so the head is named too.
    """
    width = _main_quantized(spec, widths)
    if width is None:
        return None
    from transformers import BitsAndBytesConfig

    skip = [
        root
        for name, roots in components.roots.items()
        for root in roots
        if widths.get(name) != width
    ]
    skip += components.kept_whole()
    if width == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=width,
        bnb_4bit_use_double_quant=spec.double_quant,
        bnb_4bit_compute_dtype=compute_dtype(spec, device),
        llm_int8_skip_modules=skip,
    )


def _set_unquantized_dtypes(
    model: nn.Module, widths: dict[str, str], components: Components
) -> None:
    for name, parameter in model.named_parameters():
        dtype = DTYPES.get(widths.get(components.component_of(name), ""))
        if dtype and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def autocast(model: nn.Module) -> torch.autocast:
    """bf16 where the base holds 16-bit weights, else nothing."""
    narrow = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=next(iter(narrow), torch.bfloat16), enabled=bool(narrow))


def recompute_activations(model: Any) -> None:
    """Turn on gradient checkpointing, which acts in train mode.

    transformers also makes every embedding output require grad then, which drags a frozen tower into the
    graph; non-reentrant checkpointing does not need that, so it is undone.
    """
    enable = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
    model.disable_input_require_grads()


def actual_bits(model: nn.Module, components: Components) -> dict[str, str]:
    """What each component's weights really are, e.g. {"language": "nf4 + fp32"}; biggest share first."""
    sizes: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        share = sizes.setdefault(components.component_of(name), {})
        share[_width_of(parameter)] = share.get(_width_of(parameter), 0) + parameter.numel()
    return {
        component: " + ".join(sorted(share, key=lambda width: -share[width]))
        for component, share in sizes.items()
    }


def _width_of(parameter: nn.Parameter) -> str:
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return state.quant_type
    names = {dtype: name for name, dtype in DTYPES.items()} | {torch.int8: "int8"}
    return names.get(parameter.dtype, str(parameter.dtype))


def parameter_count(spec: BaseSpec) -> dict[str, int]:
    """Logical parameters by component, from the config alone."""
    model = meta_model(spec)
    return count_by_component(model, find_components(model))


def _from_hub(load: Any, spec: BaseSpec, **kwargs: Any) -> Any:
    """Call a `from_pretrained` that runs no code of the base's; every way it can fail becomes one line."""
    where = base_dir(spec.path)
    what = f"base {spec.path}"
    if Path(where).is_dir():
        refuse_own_code(where, what)
        refuse_adapter(where, what)
    try:
        return load(where, revision=spec.revision or "main", trust_remote_code=False, **kwargs)
    except json.JSONDecodeError as error:
        raise UserError(f"base {spec.path}: its config is not valid JSON ({error})") from error
    except UserError:
        raise
    except Exception as error:  # files from elsewhere: whatever transformers stumbles over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if Path(where).is_dir():
            raise UserError(f"base {spec.path} cannot be loaded: {reason}") from error
        raise UserError(
            f"base {spec.path} is not in the local cache and cannot be fetched from the hub ({reason}); "
            "check the network and the id, or give a local folder"
        ) from error
