"""Bottleneck adapters: small networks after (or beside) a layer's sublayers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, Strategy

_CHILD = "bottleneck_adapter"
_FEEDFORWARD = ("mlp", "feed_forward", "feedforward", "ffn", "fc")
_ATTENTION = ("self_attn", "attention", "attn", "self_attention")
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "identity": nn.Identity,
}


class Bottleneck(nn.Module):
    """x -> scale * up(activation(down(x))): (..., d_in) -> (..., d_out), zero at the start.

    Args:
        d_in: width of what comes in.
        b: width of the bottleneck.
        d_out: width of what goes out.
        activation: between the two.
        bias: of both.
        scale: of the result.
    """

    def __init__(self, d_in: int, b: int, d_out: int, activation: str, bias: bool, scale: float):
        super().__init__()
        self.down, self.up = nn.Linear(d_in, b, bias), nn.Linear(b, d_out, bias)
        self.activation, self.scale = _ACTIVATIONS[activation](), scale
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down(x.to(self.down.weight.dtype))
        return (self.scale * self.up(self.activation(inner))).to(x.dtype)


@dataclass(frozen=True)
class BottleneckAdapter(Strategy):
    """h + W_up f(W_down h) in every layer, W_up starting at zero.

    pfeiffer: after the feed-forward (Pfeiffer et al. 2020, arXiv:2005.00247); houlsby: after attention and feed-forward
    (Houlsby et al. 2019, arXiv:1902.00751, fig. 2); parallel: beside the feed-forward, on its input (He et al. 2021,
    arXiv:2110.04366, table 1). A component that is not a stack of layers gets one after each of its roots.
    2 d b + b + d parameters an adapter, without bias 2 d b.

    Args:
        style: where adapters stand.
        reduction: the bottleneck is d / reduction wide; not with `width`.
        width: of the bottleneck; null takes `reduction`.
        activation: relu, gelu, silu or identity.
        bias: of both projections.
        scale: of what is added.
        learning_rate: as of LoRA.
    """

    style: Literal["pfeiffer", "houlsby", "parallel"] = "pfeiffer"
    reduction: int = 16
    width: int | None = None
    activation: Literal["relu", "gelu", "silu", "identity"] = "relu"
    bias: bool = True
    scale: float = 1.0
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        if self.reduction < 1 or (self.width is not None and self.width < 1):
            raise UserError(
                f"BottleneckAdapter reduction={self.reduction}, width={self.width}: both are at least 1"
            )

        if self.width is not None and self.reduction != 16:
            raise UserError(
                f"BottleneckAdapter reduction={self.reduction} has no effect beside width={self.width}; leave one out"
            )

    def attach(self, component: Component) -> Attachment:
        hosts = self._hosts(component)
        blocks = component.blocks()
        sizes = {}
        for name, host in hosts.items():
            block = blocks.get(name.rpartition(".")[0])
            width = component.width(block) if block else None
            sizes[name] = self._sizes(f"{component.name}: {name}", host, width)
        handles = [self._insert(host, *sizes[name]) for name, host in hosts.items()]
        trainable = tuple(
            name
            for name, _ in component.model.named_parameters()
            if f".{_CHILD}." in f".{name}" and name.partition(f".{_CHILD}.")[0] in hosts
        )

        def detach() -> None:
            for handle, host in zip(handles, hosts.values(), strict=True):
                handle.remove()
                delattr(host, _CHILD)

        return Attachment(
            component.name,
            self,
            targets=tuple(hosts),
            trainable=trainable,
            added=sum(component.model.get_parameter(name).numel() for name in trainable),
            detach=detach,
        )

    def _hosts(self, component: Component) -> dict[str, nn.Module]:
        """Full name -> module that an adapter stands after or beside."""
        wanted = (*_ATTENTION, *_FEEDFORWARD) if self.style == "houlsby" else _FEEDFORWARD
        modules = dict(component.model.named_modules())
        blocks = component.blocks()
        if not blocks:
            return self._roots(component, modules)
        found: dict[str, nn.Module] = {}
        for block in blocks:
            here = {n: modules[f"{block}.{n}"] for n in wanted if f"{block}.{n}" in modules}
            if not any(name in here for name in _FEEDFORWARD):
                children = ", ".join(name for name, _ in modules[block].named_children())
                raise UserError(
                    f"BottleneckAdapter on {component.name}: {block} has no feed-forward by a usual name; it has "
                    f"{children}"
                )
            found |= {f"{block}.{name}": module for name, module in here.items()}
        return found

    def _roots(self, component: Component, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """The component's roots that have a linear layer; not single tensors, convolutions, normalisations."""
        found = {root: modules[root] for root in component.roots if root in modules}
        found = {root: module for root, module in found.items() if _linears(module)}
        if not found:
            raise UserError(
                f"BottleneckAdapter on {component.name}: none of {', '.join(component.roots)} has a linear layer to "
                "measure by; take Full"
            )
        return found

    def _sizes(
        self, where: str, host: nn.Module, width: int | None
    ) -> tuple[int, int, torch.device]:
        """(d_in, d_out, device) of a host's adapter: the width between layers, or by its own linear layers."""
        linears = _linears(host)
        if width is None and not linears:
            raise UserError(
                f"BottleneckAdapter on {where} has no linear layer to measure by; take LoRA"
            )
        d_out = width or linears[-1].out_features
        d_in = width or (linears[0].in_features if self.style == "parallel" else d_out)
        return d_in, d_out, next(host.parameters()).device

    def _insert(self, host: nn.Module, d_in: int, d_out: int, device: torch.device) -> Any:
        b = self.width or max(1, d_out // self.reduction)
        with torch.device(device):
            adapter = Bottleneck(d_in, b, d_out, self.activation, self.bias, self.scale)
        host.add_module(_CHILD, adapter)
        return host.register_forward_hook(
            _parallel if self.style == "parallel" else _sequential, with_kwargs=True
        )


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def _tokens(host: nn.Module, output: Any) -> Tensor:
    """What a host returns, or the first of it."""
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor):
        raise UserError(
            f"BottleneckAdapter: {type(host).__name__} is no stack of layers and returns a {type(hidden).__name__}, which "
            "no adapter can follow; take LoRA"
        )
    return hidden


def _sequential(host: Any, args: Any, kwargs: Any, output: Any) -> Any:
    hidden = _tokens(host, output)
    changed = hidden + getattr(host, _CHILD)(hidden)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _parallel(host: Any, args: Any, kwargs: Any, output: Any) -> Any:
    given = args[0] if args else next(iter(kwargs.values()))
    hidden = _tokens(host, output)
    d_in = getattr(host, _CHILD).down.in_features
    if given.shape[-1] != d_in or given.shape[:-1] != hidden.shape[:-1]:
        raise UserError(
            f"BottleneckAdapter style=parallel: {type(host).__name__} makes {tuple(hidden.shape)} of "
            f"{tuple(given.shape)}: it puts several tokens into one, and beside that no adapter fits; take style=pfeiffer"
        )
    changed = hidden + getattr(host, _CHILD)(given)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed
