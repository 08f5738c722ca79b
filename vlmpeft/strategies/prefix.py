"""Prefix tuning: trained keys and values that every attention layer sees before its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, Strategy
from vlmpeft.strategies.word_start import Start

_CHILD = "prefix_tuning"
_ATTENTION = "vlmpeft_prefix_sdpa"


class Prefix(nn.Module):
    """(2, heads, n, head_dim) trained keys and values of one attention layer."""

    def __init__(self, start: Tensor):
        super().__init__()
        self.weight = nn.Parameter(start)

    def before(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, heads, S, head_dim) each -> (B, heads, n + S, head_dim)."""
        own = self.weight.to(key).unsqueeze(1).expand(-1, len(key), -1, -1, -1)
        return torch.cat([own[0], key], 2), torch.cat([own[1], value], 2)


@dataclass(frozen=True)
class PrefixTuning(Strategy):
    """softmax(q [P_k; K]) [P_v; V] in every attention layer, with n trained rows P_k and P_v.

    Li and Liang 2021, arXiv:2101.00190, eq. 3, without the reparametrisation; 2 n d_kv parameters a layer. The prefix
    is no part of the sequence: positions, masks and cache of the real tokens are the base's own.

    Args:
        n: rows a layer.
        init: of language: vocabulary (keys and values of n words drawn from it, section 7.5), text, or random
            (N(0, 0.02)); of vision random.
        text: with init text: its tokens, repeated or cut to n.
        learning_rate: more than of LoRA.
    """

    n: int = 20
    init: Literal["auto", "vocabulary", "text", "random"] = "auto"
    text: str | None = None
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"PrefixTuning n={self.n}: at least 1")
        if (self.init == "text") != (self.text is not None):
            raise UserError(
                f"PrefixTuning init={self.init}, text={self.text!r}: text and init=text go together"
            )

    def attach(self, component: Component) -> Attachment:
        hosts = _hosts(component)
        starts = self._starts(component, hosts)
        configs = {id(host.config): host.config for host in hosts.values()}.values()
        before = [config._attn_implementation for config in configs]
        _register()
        for name, host in hosts.items():
            host.add_module(_CHILD, Prefix(starts[name]))
        for config in configs:
            config._attn_implementation_internal = _ATTENTION

        def detach() -> None:
            for host in hosts.values():
                delattr(host, _CHILD)
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation_internal = implementation

        return Attachment(
            component.name,
            self,
            targets=tuple(hosts),
            trainable=tuple(f"{name}.{_CHILD}.weight" for name in hosts),
            added=sum(start.numel() for start in starts.values()),
            detach=detach,
        )

    def _starts(self, component: Component, hosts: dict[str, Any]) -> dict[str, Tensor]:
        """(2, heads, n, head_dim) for each host."""
        sizes = {name: _heads(host) for name, host in hosts.items()}
        device = next(component.model.parameters()).device
        noise = {
            name: 0.02 * torch.randn(2, heads, self.n, d, device=device)
            for name, (heads, d) in sizes.items()
        }
        if component.name != "language":
            if self.init not in ("auto", "random"):
                raise UserError(
                    f"PrefixTuning init={self.init} on {component.name}: it has no vocabulary; leave it at auto"
                )
            return noise
        start = Start("vocabulary" if self.init == "auto" else self.init, self.text)
        ids = None if device.type == "meta" else start.word_ids(component.model, self.n)
        return noise if ids is None else _of_words(component.model, hosts, ids.to(device), noise)


def _of_words(
    model: Any, hosts: dict[str, Any], ids: Tensor, fallback: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Keys and values that the base makes of some tokens; noise for layers whose cache is of another kind."""
    try:
        with torch.no_grad():
            cache = model.eval()(input_ids=ids[None], use_cache=True).past_key_values
    except (ValueError, TypeError):  # Kosmos and InstructBLIP read no text without a picture
        return fallback
    if not hasattr(cache, "layers"):  # of an encoder-decoder
        return fallback
    starts = {}
    for name, host in hosts.items():
        layer = cache.layers[host.layer_idx]
        made = torch.stack([layer.keys[0], layer.values[0]]).float()
        starts[name] = made.clone() if made.shape == fallback[name].shape else fallback[name]
    return starts


def _hosts(component: Component) -> dict[str, Any]:
    """The self-attention modules of the component's layers.

    Raises:
        UserError: there is none, or they do not attend by transformers' exchangeable functions with sdpa.
    """
    blocks = tuple(f"{block}." for block in component.blocks())
    found: dict[str, Any] = {
        name: module
        for name, module in component.model.named_modules()
        if name.startswith(blocks)
        and "attn" in name.rsplit(".", 1)[-1].replace("attention", "attn")
        and "cross" not in name
        and hasattr(module, "config")
        and _heads(module) != (0, 0)
    }
    if not found:
        raise UserError(
            f"PrefixTuning on {component.name}: no attention layer to give keys and values to; take LoRA"
        )
    if any(hasattr(host, _CHILD) for host in found.values()):
        raise UserError(
            f"PrefixTuning on {component.name} stands there already; give one with a larger n"
        )
    for host in found.values():
        implementation = host.config._attn_implementation
        if implementation != "sdpa":
            raise UserError(
                f"PrefixTuning on {component.name}: {type(host).__name__} attends by {implementation!r}, and prefixes are "
                "made for sdpa; take LoRA"
            )
    return found


def _heads(attention: Any) -> tuple[int, int]:
    """(key and value heads, width of one); (0, 0) if the module does not say."""
    d = getattr(attention, "head_dim", None)
    if not isinstance(d, int):
        return 0, 0
    projection = getattr(attention, "k_proj", None)
    if isinstance(projection, nn.Module):
        base: Any = getattr(projection, "base_layer", projection)
        return base.out_features // d, d
    heads = getattr(attention, "num_key_value_heads", getattr(attention, "num_heads", 0))
    return (heads, d) if heads else (0, 0)


def _register() -> None:
    """Make the attention below known to transformers, under a name that configs of adapted components carry."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_ATTENTION, _attend)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """sdpa, behind the module's prefix if it has one."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    prefix = getattr(module, _CHILD, None)
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    mask, is_causal = attention_mask, kwargs.pop("is_causal", None)
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    length, seen = query.shape[2], key.shape[2]
    if mask is None and is_causal and length > 1:
        mask = torch.ones(length, seen, dtype=torch.bool, device=key.device).tril(seen - length)
        mask = mask[None, None]
    if mask is not None:
        n = prefix.weight.shape[2]
        mask = F.pad(mask[..., :seen], (n, 0), value=mask.dtype == torch.bool)
    key, value = prefix.before(key, value)
    return sdpa_attention_forward(module, query, key, value, mask, is_causal=False, **kwargs)
