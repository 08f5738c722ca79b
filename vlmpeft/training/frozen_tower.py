"""What a frozen tower makes of each training picture, computed once instead of once an epoch.

Between two steps nothing that is trained changes the output of a frozen tower, and in eval mode nothing in it is random. So the
tower's outputs are kept by picture; a projector that is trained runs on them at every step.

Each picture goes through the tower alone. In a batch, the last bits of its output would depend on the rest of the batch, and Adam makes
a full step of a gradient that is only rounding: a run would depend on which runs kept the outputs.
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
    """Picture -> output of the tower.

    Args:
        limit_bytes: memory of the tensors; where those of a data set do not fit, none is kept.
    """

    def __init__(self, limit_bytes: int = 2**30):
        super().__init__()
        self.limit_bytes = limit_bytes


class FrozenTower:
    """Puts kept features into training batches in place of pixels, where that gives the same loss.

    Args:
        attached: a plan on a model.
        num_pictures: of the training data; if their outputs do not fit into memory, none is used.
        kept: outputs that are known already; runs on one base and one data set may share them.
    """

    def __init__(self, attached: AttachedPlan, num_pictures: int, kept: KeptOutputs | None = None):
        self.model: Any = attached.model
        self.num_pictures = num_pictures
        self.kept = KeptOutputs() if kept is None else kept
        self.projector = _projector(attached)
        self._encode = getattr(self.model.base_model, "get_image_features", None)
        trained = {a.component for a in attached.attachments if a.trainable}
        takes = "mm_encoder_outputs" in inspect.signature(self.model.forward).parameters
        possible = takes and self._encode is not None and "vision" not in trained
        self.is_used = possible and self.projector is not None
        self._known = set[str]()
        if self._encode is not None:
            self._known = set(inspect.signature(self._encode).parameters)
        # of the pixels: pictures of several sizes are padded to the largest of the batch
        self._shape: torch.Size | None = None
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
        shape = whole["pixel_values"].shape[1:]
        if self._shape is None:
            self._shape = shape
            self.is_used = self._can_split(whole, pictures) and self._agrees(whole, pictures)
        self.is_used = self.is_used and shape == self._shape
        return self._replaced(whole, pictures) if self.is_used else whole

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
        """What the projector gets of each picture, kept from now on."""
        for number, picture in enumerate(pictures):
            if picture not in self.kept:
                alone = {k: v[number : number + 1] for k, v in batch.items() if k in self._known}
                self.kept[picture] = self._below_projector(alone)
        return [self.kept[picture] for picture in pictures]

    def _below_projector(self, picture: Mapping[str, Any]) -> Tensor:
        """The projector's input of one picture; the projector itself is not run, since its dropout would use up random numbers."""

        def stop(_module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Reached(args[0])

        try:
            self._look(picture, stop)
        except _Reached as reached:
            return reached.value[0]
        raise RuntimeError("the projector was not called for a picture")

    @torch.no_grad()
    def _look(self, batch: Mapping[str, Any], hook: Any) -> Any:
        """Features of a batch's pictures; the hook sees each call of the projector on the way."""
        assert self._encode is not None
        assert self.projector is not None
        given = {key: value for key, value in batch.items() if key in self._known}
        with _hooked(self.projector, hook):
            return self._encode(**given, return_dict=True)

    @torch.no_grad()
    def _can_split(self, batch: Mapping[str, Any], pictures: Sequence[Image]) -> bool:
        """Whether the projector runs once, on one row a picture, nothing comes after it, and all rows fit into memory."""
        assert self.projector is not None
        if any(len(v) != len(pictures) for k, v in batch.items() if k in self._known):
            return False
        seen: list[Tensor] = []

        def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.extend(arg for arg in args if isinstance(arg, Tensor))

        with _eval_mode(self.projector):
            output = self._look(batch, note)
            features = getattr(output, "pooler_output", None)
            if features is None or len(seen) != 1 or len(seen[0]) != len(pictures):
                return False
            if seen[0][0].nbytes * self.num_pictures > self.kept.limit_bytes:
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


class _Reached(Exception):
    """The projector was called; with its input."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value


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
