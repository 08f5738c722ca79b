"""An adapter on a base: its plan attached, its tensors loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.peft_form import PREFIX
from vlmpeft.base.components import Components
from vlmpeft.runtime.errors import UserError
from vlmpeft.strategies.plan import AttachedPlan, attach


def load_adapter(folder: str | Path, model: Any, components: Components) -> AttachedPlan:
    """Attach an adapter folder's plan to a freshly loaded base and load its tensors."""
    return attach_adapter(Adapter.read(folder), model, components)


def attach_adapter(adapter: Adapter, model: Any, components: Components) -> AttachedPlan:
    """The same with an adapter that was read before; a failure leaves the model as it was.

    Raises:
        UserError: a plan that the base cannot take, or tensors that do not fit it.
    """
    tensors = adapter.tensors
    attached = attach(adapter.plan, model, components)
    try:
        _copy_tensors(adapter.folder, _named_as_saved(attached), tensors)
    except UserError:
        attached.detach()
        raise
    return attached


def _named_as_saved(attached: AttachedPlan) -> dict[str, torch.nn.Parameter]:
    return {PREFIX + name.replace(".default.", "."): p for name, p in attached.trainable().items()}


def load_tensors(adapter: Adapter, attached: AttachedPlan, subset: bool = False) -> None:
    """Load an adapter's tensors into a plan that is already attached.

    Args:
        adapter: what is loaded.
        attached: the plan on its model.
        subset: the plan may have more than the adapter does; the rest stays as it is.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape; nothing was loaded.
    """
    names, tensors = _named_as_saved(attached), adapter.tensors
    if subset:
        names = {name: parameter for name, parameter in names.items() if name in tensors}
    _copy_tensors(adapter.folder, names, tensors)


def _copy_tensors(
    folder: str, names: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """All of them or, with an error, none."""
    if wrong := names.keys() ^ tensors.keys():
        kind = "missing from it" if min(wrong) in names else "unexpected"
        raise UserError(
            f"adapter {folder} does not fit the plan: {len(wrong)} tensors, e.g. {min(wrong)} is {kind}"
        )
    for name, parameter in names.items():
        if tensors[name].shape != parameter.shape:
            raise UserError(
                f"adapter {folder}: {name} has shape {tuple(tensors[name].shape)}, the plan needs "
                f"{tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(tensors[name])


def load_part(adapter: Adapter, attached: AttachedPlan) -> None:
    """Load what an adapter has for an attached part of its plan.

    Raises:
        UserError: a tensor is missing or of another shape; nothing was loaded.
    """
    here = _named_as_saved(attached)
    tensors = {name: t for name, t in adapter.tensors.items() if name in here}
    _copy_tensors(adapter.folder, here, tensors)
