"""Low-rank adaptation and DoRA through PEFT's own layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from vlmpeft.base.fingerprint import weight_files
from vlmpeft.base.spec import BaseSpec
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, PeftPart, Strategy, names_module
from vlmpeft.strategies.deltas import Deltas
from vlmpeft.strategies.loftq import start_from_residual
from vlmpeft.strategies.low_rank import dense
from vlmpeft.strategies.peft_layers import attach_tuner, plain_peft_keeps_targets

_CHANGES_BASE = ("pissa", "olora")


@dataclass(frozen=True)
class LoRA(Strategy):
    """W x + (alpha / r) B A x with A (r, d_in) random and B (d_out, r) zero (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    Args:
        r: rank; r (d_in + d_out) parameters a target.
        alpha: numerator of the scale; auto is 2 r.
        dropout: probability of zeroing an input of A while training.
        targets: linear layers of the component, by last name part, full path or glob; null is all of
            them but the output head.
        learning_rate: about ten times what full fine-tuning takes.
        rslora: scale by alpha / sqrt(r), stable for large ranks (Kalajdzievski 2023, arXiv:2312.03732).
        init: default (A Kaiming-uniform), gaussian, orthogonal; pissa starts from the principal singular
            vectors (Meng et al. 2024, arXiv:2404.02948), olora from a QR factor (arXiv:2406.01775), both of the
            weight itself, of which they leave the rest frozen: not on quantized weights; loftq from the principal part
            of what quantization lost (Li et al. 2023, arXiv:2310.08659): on quantized weights alone.
        rank_pattern: target -> its own rank.
        alpha_pattern: target -> its own alpha.
        lora_plus_ratio: learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv:2402.12354).
    """

    r: int = 16
    alpha: float | Literal["auto"] = "auto"
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None
    learning_rate: float = 2e-4
    rslora: bool = False
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "loftq"] = "default"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    lora_plus_ratio: float = 1.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        for rank in (self.r, *self.rank_pattern.values()):
            if rank < 1:
                raise UserError(f"{name} r={rank}: the rank is at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"{name} dropout={self.dropout}: a probability below 1")
        if self.lora_plus_ratio <= 0:
            raise UserError(f"{name} lora_plus_ratio={self.lora_plus_ratio}: it is above 0")

    @property
    def scaled_alpha(self) -> float:
        return 2 * self.r if self.alpha == "auto" else self.alpha

    def attach(self, component: Component) -> Attachment:
        layers = component.match_linears(self.targets)
        settings = {name: self._settings(name) for name in layers}
        self._check(component, layers, settings)
        kept = _copies(layers) if self.init in _CHANGES_BASE else {}
        config = self._config(settings, component.is_meta)
        plain = self.init not in _CHANGES_BASE and plain_peft_keeps_targets(component.model, config)
        attachment, _ = attach_tuner(self, component, config, list(layers))
        try:
            self._start(component, list(layers))
        except UserError:
            attachment.detach()
            raise

        def detach() -> None:
            attachment.detach()
            for name, weight in kept.items():
                layers[name].weight.data = weight

        return replace(
            attachment,
            detach=detach,
            deltas=lambda: _deltas(attachment, layers, kept),
            rate_factors=self._rate_factors(attachment.trainable),
            peft=PeftPart(lora=settings) if plain else None,
        )

    def _start(self, component: Component, targets: list[str]) -> None:
        """LoftQ's factors, where there are weights."""
        model: Any = component.model
        if self.init == "loftq" and not component.is_meta:
            start_from_residual(model, targets, weight_files(BaseSpec(model.name_or_path)))

    def _settings(self, name: str) -> dict[str, Any]:
        """What PEFT has to know of one target."""
        r = _of_pattern(self.rank_pattern, name, self.r)
        alpha = 2 * r if self.alpha == "auto" else self.alpha
        alpha = _of_pattern(self.alpha_pattern, name, alpha)
        return {"r": r, "alpha": alpha, "rslora": self.rslora, "dora": self._dora}

    @property
    def _dora(self) -> bool:
        return False

    def _config(self, settings: dict[str, dict[str, Any]], is_meta: bool) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.scaled_alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=list(settings),
            rank_pattern={n: s["r"] for n, s in settings.items() if s["r"] != self.r},
            alpha_pattern={
                n: s["alpha"] for n, s in settings.items() if s["alpha"] != self.scaled_alpha
            },
            use_rslora=self.rslora,
            use_dora=self._dora,
            init_lora_weights=is_meta or self.init in ("default", "loftq") or self.init,
        )

    def _rate_factors(self, trainable: Sequence[str]) -> dict[str, float]:
        """LoRA+ alone changes rates, and of B alone: PEFT's own gives it to every vector as well."""
        if self.lora_plus_ratio == 1:
            return {}
        return {name: self.lora_plus_ratio for name in trainable if ".lora_B." in name}

    def _check(
        self, component: Component, layers: Mapping[str, nn.Linear], settings: Mapping[str, Any]
    ) -> None:
        """Refuse patterns without a target, ranks above the layer's, and starts that weights do not allow."""
        for key in (*self.rank_pattern, *self.alpha_pattern):
            if not any(names_module(key, name) for name in layers):
                raise UserError(f"{type(self).__name__} on {component.name}: no target is {key!r}")
        for name, layer in layers.items():
            most = min(layer.in_features, layer.out_features)
            if settings[name]["r"] > most:
                raise UserError(
                    f"{type(self).__name__} on {component.name}: r={settings[name]['r']} is more than {name} has "
                    f"({layer.in_features} x {layer.out_features}); give r <= {most}, or a rank_pattern"
                )
            if self.init in _CHANGES_BASE and not layer.weight.is_floating_point():
                raise UserError(
                    f"{type(self).__name__} init={self.init} on {component.name}: {name} is quantized, and taking the "
                    "principal part out of a quantized weight would quantize the rest again; "
                    f"set model.base.bits.{component.name} to bf16 or fp32, or init to default"
                )
        whole = all(p.is_floating_point() for p in component.parameters().values())
        if self.init == "loftq" and whole and not component.is_meta:
            raise UserError(
                f"{type(self).__name__} init=loftq on {component.name} has no effect: no weight is quantized, so nothing was "
                "lost; set init to default"
            )


@dataclass(frozen=True)
class DoRA(LoRA):
    """Weight-decomposed LoRA: a trained magnitude times the direction of W + (alpha / r) B A.

    Liu et al. 2024, arXiv:2402.09353, eq. 5; r (d_in + d_out) + d_out parameters a target. Knobs as of LoRA.
    """

    @property
    def _dora(self) -> bool:
        return True


def _of_pattern(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((value for key, value in pattern.items() if names_module(key, name)), default)


def _copies(layers: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
    """Copies of weights that exist."""
    return {
        name: layer.weight.detach().clone()
        for name, layer in layers.items()
        if layer.weight.device.type != "meta"
    }


def _deltas(
    attachment: Attachment, layers: Mapping[str, nn.Linear], kept: Mapping[str, Tensor]
) -> Deltas:
    """Against the base as it was before PiSSA or OLoRA took their part out of it."""
    assert attachment.deltas is not None
    for name, delta in attachment.deltas():
        target = name.rpartition(".")[0]
        if target in kept and name.endswith(".weight"):
            delta = dense(delta) + layers[target].weight.detach().float() - kept[target].float()
        yield name, delta
