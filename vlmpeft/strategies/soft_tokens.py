"""Trained tokens before the text of a VLM, invisible to everything outside the language model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.contract import Attachment, Component, Strategy
from vlmpeft.strategies.word_start import Start

_CHILD = "soft_tokens"
# inputs with one value a token, 0 for a token that is plain text
_PER_TOKEN = (
    "token_type_ids",
    "mm_token_type_ids",
    "moe_mm_token_type_ids",
    "cross_attention_mask",
    "image_embeds_position_mask",
    "img_input_mask",
)


class SoftTokens(nn.Module):
    """(n, D) trained vectors, put before the embeddings of a sequence when it is first read.

    The host is the module that makes masks and positions, so that they are made for the longer sequence; what it
    returns has its old length again. Later steps of a generation find the tokens in the cache.

    Args:
        start: (n, D).
        filler: a token id that stands for them until they are embedded.
    """

    def __init__(self, start: Tensor, filler: int):
        super().__init__()
        self.weight = nn.Parameter(start)
        self.filler = filler
        self._is_reading = False  # the host is at the beginning of a sequence
        self._fills = False  # and embeds fillers

    @property
    def n(self) -> int:
        return len(self.weight)

    def before_host(self, host: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        names = list(inspect.signature(host.forward).parameters)
        given = dict(zip(names, args, strict=False)) | kwargs
        cache = given.get("past_key_values")
        self._is_reading = cache is None or cache.get_seq_length() == 0
        change = self._lengthen if self._is_reading else self._shift
        return (), change(given)

    def _lengthen(self, given: dict[str, Any]) -> dict[str, Any]:
        """Room for n more tokens at the left of everything that has one value a token."""
        self._fills = given.get("input_ids") is not None
        if self._fills:
            given["input_ids"] = F.pad(given["input_ids"], (self.n, 0), value=self.filler)
        elif given.get("inputs_embeds") is not None:
            given["inputs_embeds"] = self._joined(given["inputs_embeds"])
        for key in _PER_TOKEN:
            if given.get(key) is not None:
                ahead = (0, 0) * (given[key].dim() - 2)
                given[key] = F.pad(given[key], (*ahead, self.n, 0))
        return self._shift(given)

    def _shift(self, given: dict[str, Any]) -> dict[str, Any]:
        """Masks see n more tokens, and the text is n positions later."""
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor):
            assert mask.dim() == 2, "the host got a mask that is already made"
            given["attention_mask"] = F.pad(mask, (self.n, 0), value=1)
        for key in ("position_ids", "cache_position"):  # (B, T), (streams, B, T); (T,)
            if given.get(key) is not None:
                later = given[key] + self.n
                if self._is_reading:
                    first = torch.arange(self.n, device=later.device)
                    later = torch.cat([first.expand(*later.shape[:-1], -1), later], -1)
                given[key] = later
        return given

    def after_embedding(self, _embedding: nn.Module, _args: Any, output: Tensor) -> Tensor:
        """Put the vectors in the fillers' place; the host embeds once a sequence."""
        return self._joined(output[:, self.n :]) if self._fills else output

    def _joined(self, embedded: Tensor) -> Tensor:
        """(B, T, D) -> (B, n + T, D)."""
        return torch.cat([self.weight.to(embedded).expand(len(embedded), -1, -1), embedded], 1)

    def after_host(self, _host: nn.Module, _args: Any, output: Any) -> Any:
        if not self._is_reading:
            return output
        self._is_reading = self._fills = False
        if isinstance(output, tuple):
            return (output[0][:, self.n :], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, self.n :]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(h[:, self.n :] for h in output.hidden_states)
        return output


def insert_soft_tokens(
    strategy: Strategy, component: Component, n: int, start: Start
) -> Attachment:
    """Put n trained tokens before the language model's input.

    Raises:
        UserError: an encoder-decoder, or there are such tokens already.
    """
    model: Any = component.model
    if model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder:
        raise UserError(
            f"PromptTuning on language: {type(model).__name__} is an encoder-decoder, whose answer would begin after "
            "the prompt; take LoRA"
        )
    root = component.roots[0]
    decoder, embedding = model.get_submodule(root), model.get_input_embeddings()
    if hasattr(decoder, _CHILD):
        raise UserError("PromptTuning on language stands there already; give one with a larger n")
    soft = SoftTokens(_start(model, embedding, n, start), _filler(model.config))
    host = _host(component)
    decoder.add_module(_CHILD, soft)
    handles = [
        host.register_forward_pre_hook(soft.before_host, with_kwargs=True),
        host.register_forward_hook(soft.after_host),
        embedding.register_forward_hook(soft.after_embedding),
    ]

    def detach() -> None:
        for handle in handles:
            handle.remove()
        delattr(decoder, _CHILD)

    return Attachment(
        component.name,
        strategy,
        targets=(root,),
        trainable=(f"{root}.{_CHILD}.weight",),
        added=soft.weight.numel(),
        detach=detach,
    )


def _host(component: Component) -> nn.Module:
    """The module that makes masks and positions.

    That is the whole model below its head, where there is such a module (Gemma 3 makes the decoder's masks there), else
    the one that holds the decoder's layers: BLIP-2 and Kosmos call nothing above it, or a head with it.
    """
    model: Any = component.model
    if model.base_model is not model:
        return model.base_model
    return model.get_submodule(next(iter(component.blocks())).rsplit(".", 2)[0])


def _start(model: Any, embedding: Any, n: int, start: Start) -> Tensor:
    d = embedding.weight.shape[-1]
    device = embedding.weight.device
    if device.type == "meta":
        return torch.empty(n, d, device=device)
    ids = start.word_ids(model, n)
    if ids is None:
        return 0.02 * torch.randn(n, d).to(device)
    with torch.no_grad():
        return embedding(ids.to(device)).float().clone()  # with its scale, where it has one


def _filler(config: Any) -> int:
    """A token id that means nothing: not padding, no picture, video or sound."""
    taken = set(_special_ids(config.to_dict()))
    return next(i for i in range(len(taken) + 1) if i not in taken)


def _special_ids(config: dict[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _special_ids(value)
        elif str(key).endswith(("_id", "_ids", "_index")):
            yield from (i for i in (value if isinstance(value, list) else [value]) if i is not None)
