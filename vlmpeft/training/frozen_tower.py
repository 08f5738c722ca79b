"""What a frozen tower makes of each training picture, computed once instead of once an epoch.

Between two steps nothing that is trained changes the output of a frozen tower, and in eval mode nothing in it is random. So the
tower's outputs are kept by picture; a projector that is trained runs on them at every step.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmpeft.data.conversation import Image
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.strategies.plan import AttachedPlan

PICTURES = "pictures"  # key of a training batch: the pictures of each conversation, in the order of its pixels
_TOLERANCE = 1e-3  # relative, of a loss: 16-bit kernels round differently by batch


class KeptOutputs(dict[Image, Tensor]):
    """Picture -> output of the tower; the first `limit_bytes` of them are kept.

    Args:
        limit_bytes: memory of the tensors.
    """

    def __init__(self, limit_bytes: int = 2**30):
        super().__init__()
        self.room = limit_bytes

    def keep(self, picture: Image, output: Tensor) -> None:
        """Keep an output if there is room."""
        if picture not in self and output.nbytes <= self.room:
            self.room -= output.nbytes
            self[picture] = output


class FrozenTower:
    """Puts kept features into training batches in place of pixels, where that gives the same loss.

    Args:
        attached: a plan on a model.
        kept: outputs that are known already; runs on one base and one data set may share them.
    """

    def __init__(self, attached: AttachedPlan, kept: KeptOutputs | None = None):
        self.model: Any = attached.model
        self.kept = KeptOutputs() if kept is None else kept
        self.projector = _projector(attached)
        self._encode = getattr(self.model.base_model, "get_image_features", None)
        trained = {a.component for a in attached.attachments if a.trainable}
        takes = "mm_encoder_outputs" in inspect.signature(self.model.forward).parameters
        possible = takes and self._encode is not None and "vision" not in trained
        self.is_used = possible and self.projector is not None
        self._is_checked = False
        self._as_list = False  # whether the model takes a list of features (LLaVA) or one tensor

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch without `pictures`, and with features in place of pixels if they can be used.

        Args:
            batch: of the train loader, on the model's device.
        """
        whole = {key: value for key, value in batch.items() if key != PICTURES}
        pictures = [picture for one in batch.get(PICTURES, ()) for picture in one]
        if not self.is_used or not pictures or "pixel_values" not in whole:
            return whole
        if not self._is_checked:
            self._is_checked = True
            self.is_used = self._can_split(whole, pictures) and self._agrees(whole, pictures)
            if not self.is_used:
                return whole
        return self._replaced(whole, pictures)

    def _replaced(self, batch: dict[str, Any], pictures: Sequence[Image]) -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        outputs = self._outputs(batch, pictures)
        assert self.projector is not None
        features = self.projector(torch.stack(outputs))
        given: Any = list(features) if self._as_list else features
        kept = {key: value for key, value in batch.items() if not key.startswith("pixel_values")}
        image = BaseModelOutputWithPooling(pooler_output=given)
        return kept | {"mm_encoder_outputs": {"image": image}}

    def _outputs(self, batch: Mapping[str, Any], pictures: Sequence[Image]) -> list[Tensor]:
        """What the projector gets of each picture: as kept, or computed for the whole batch."""
        if all(picture in self.kept for picture in pictures):
            return [self.kept[picture] for picture in pictures]
        _, (outputs,) = self._look(batch)
        for picture, output in zip(pictures, outputs, strict=True):
            self.kept.keep(picture, output)
        return list(outputs)

    @torch.no_grad()
    def _look(self, batch: Mapping[str, Any]) -> tuple[Any, list[Tensor]]:
        """Features of a batch's pictures, and the input of every call of the projector on the way."""
        seen: list[Tensor] = []

        def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.extend(arg.detach() for arg in args if isinstance(arg, Tensor))

        assert self._encode is not None
        assert self.projector is not None
        known = set(inspect.signature(self._encode).parameters) - {"kwargs"}
        with _hooked(self.projector, note):
            features = self._encode(
                **{k: v for k, v in batch.items() if k in known}, return_dict=True
            )
        return features, seen

    @torch.no_grad()
    def _can_split(self, batch: Mapping[str, Any], pictures: Sequence[Image]) -> bool:
        """Whether the projector runs once, on one row a picture, and nothing comes after it."""
        assert self.projector is not None
        with _eval_mode(self.projector):
            output, seen = self._look(batch)
            features = getattr(output, "pooler_output", None)
            if features is None or len(seen) != 1 or len(seen[0]) != len(pictures):
                return False
            projected = self.projector(seen[0])
        self._as_list = not isinstance(features, Tensor)
        return len(features) == len(projected) and all(
            a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5)
            for a, b in zip(features, projected, strict=True)
        )

    @torch.no_grad()
    def _agrees(self, batch: dict[str, Any], pictures: Sequence[Image]) -> bool:
        """Whether the model says the same of features as of pixels; dropout is off meanwhile."""
        with _eval_mode(self.model):
            plain, _ = supervised_loss(self.model, batch)
            ours, _ = supervised_loss(self.model, self._replaced(batch, pictures))
        return bool(torch.isclose(plain, ours, rtol=_TOLERANCE))


def _projector(attached: AttachedPlan) -> nn.Module | None:
    """The projector, if it is one module outside of the tower."""
    roots = attached.components.roots
    names = roots.get("projector", ())
    tower = tuple(f"{root}." for root in roots.get("vision", ()))
    if len(names) != 1 or names[0].startswith(tower):
        return None
    return dict(attached.model.named_modules()).get(names[0])


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode, and back as each was."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
