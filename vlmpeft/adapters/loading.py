"""An adapter folder read: its plan, its base, its tensors, and the plan attached with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vlmpeft.adapters.manifest import MANIFEST, OWN_WEIGHTS, TEMPLATE, read_manifest
from vlmpeft.adapters.peft_form import PEFT_WEIGHTS, PREFIX
from vlmpeft.base.components import PLANNED, Components
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.own_code import refuse_own_code
from vlmpeft.runtime.records import read_short
from vlmpeft.strategies.plan import AttachedPlan, Plan, attach

_PLAUSIBLE_SIZE = 1024  # of a rank or a number of tokens, whatever the tensors are
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def adapter_plan(folder: str | Path) -> Plan:
    """The plan an adapter was trained with.

    Raises:
        UserError: its manifest names what is no strategy, or gives one values it does not take.
    """
    return saved_plan(folder, read_manifest(folder))


def saved_plan(folder: str | Path, manifest: dict[str, Any]) -> Plan:
    """The same of a manifest that was read before."""
    try:
        plan = Plan.from_dict(manifest["plan"])
        _check_sizes(plan, manifest["tensors"])
    except UserError as error:
        raise UserError(f"adapter {folder}: {error}") from error
    return plan


def _check_sizes(plan: Plan, shapes: dict[str, list[int]]) -> None:
    """Refuse a rank, width or number of tokens that no tensor has: it would be allocated for every layer first."""
    sizes = {size for shape in shapes.values() for size in shape}
    for component in PLANNED:
        for strategy in plan.of(component):
            for field in ("r", "init_r", "target_r", "width", "n"):
                size = getattr(strategy, field, None) or 0
                if isinstance(size, int) and size > _PLAUSIBLE_SIZE and size not in sizes:
                    kind = type(strategy).__name__
                    raise UserError(
                        f"{kind} of {component} has {field}={size} and no tensor of that size; copy or train it again"
                    )


def trained_base(folder: str | Path, path: str | None = None) -> BaseSpec:
    """The base an adapter was trained on, in the widths it was trained on.

    Args:
        folder: the adapter.
        path: where the base is now; None is where it was.
    """
    base = read_manifest(folder)["base"]
    bits = {name: base["bits"][name] for name in PLANNED}
    knobs = {k: base["bits"][k] for k in ("double_quant", "compute") if k in base["bits"]}
    revision = base.get("revision") if path in (None, base["id"]) else None
    return BaseSpec(path or base["id"], Bits(**bits), revision=revision, **knobs)


def chat_template(folder: str | Path) -> str | None:
    """The template an adapter was trained with, Jinja; None if its folder has none."""
    path = Path(folder) / TEMPLATE
    return read_short(path) if path.is_file() else None


def saved_processor(folder: str | Path) -> Any:
    """The processor of an adapter or a checkpoint folder, with the chat template it was trained with.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoProcessor

    refuse_own_code(folder, str(folder))
    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # files from elsewhere: whatever transformers stumbles over
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder}: its processor cannot be loaded: {reason}") from error


def check_base(folder: str | Path, base: dict[str, Any]) -> str:
    """Compare an adapter's base with the one at hand: "same" or "other bits".

    Raises:
        UserError: another base.
    """
    trained_on = read_manifest(folder)["base"]
    if trained_on["fingerprint"] != base["fingerprint"]:
        raise UserError(
            f"adapter {folder} belongs to base {trained_on['id']} (fingerprint {trained_on['fingerprint']}), "
            f"not to {base['id']} ({base['fingerprint']}); give --model.base.path {trained_on['id']}"
        )
    return "same" if trained_on["bits"] == base["bits"] else "other bits"


def load_adapter(folder: str | Path, model: Any, components: Components) -> AttachedPlan:
    """Attach an adapter's plan to a freshly loaded base and load its tensors."""
    return attach_tensors(folder, adapter_plan(folder), read_tensors(folder), model, components)


def attach_tensors(
    folder: str | Path, plan: Plan, tensors: dict[str, Tensor], model: Any, components: Components
) -> AttachedPlan:
    """The same with what was read of the folder before; a failure leaves the model as it was.

    Raises:
        UserError: a plan that the base cannot take, or tensors that do not fit it.
    """
    attached = attach(plan, model, components)
    try:
        _copy_tensors(folder, _named_as_saved(attached), tensors)
    except UserError:
        attached.detach()
        raise
    return attached


def _named_as_saved(attached: AttachedPlan) -> dict[str, torch.nn.Parameter]:
    return {PREFIX + name.replace(".default.", "."): p for name, p in attached.trainable().items()}


def load_tensors(folder: str | Path, attached: AttachedPlan, subset: bool = False) -> None:
    """Load an adapter's tensors into a plan that is already attached.

    Args:
        folder: the adapter.
        attached: the plan on its model.
        subset: the plan may have more than the adapter does; the rest stays as it is.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape; nothing was loaded.
    """
    names = _named_as_saved(attached)
    tensors = read_tensors(folder)
    if subset:
        names = {name: parameter for name, parameter in names.items() if name in tensors}
    _copy_tensors(folder, names, tensors)


def _copy_tensors(
    folder: str | Path, names: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]
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


def load_part(folder: str | Path, attached: AttachedPlan) -> None:
    """Load what an adapter has for an attached part of its plan.

    Raises:
        UserError: a tensor is missing or of another shape; nothing was loaded.
    """
    here = _named_as_saved(attached)
    tensors = read_tensors(folder)
    _copy_tensors(folder, here, {name: t for name, t in tensors.items() if name in here})


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Every tensor of an adapter folder, on the CPU, by the name PEFT would give it.

    Raises:
        UserError: no weights, broken ones, other tensors than the manifest lists, a NaN or an infinity.
    """
    path = weights_file(Path(folder))
    try:
        tensors = load_file(path)
    except Exception as error:
        raise UserError(f"adapter {folder}: {path.name} is broken: {error}") from error
    _check_inventory(folder, path.name, tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            kind = "a NaN" if tensor.isnan().any() else "an infinity"
            raise UserError(
                f"adapter {folder}: {name} in {path.name} holds {kind}; take an earlier checkpoint of the run, or train again "
                "with a lower learning rate"
            )
    return tensors


def _check_inventory(folder: str | Path, file: str, tensors: dict[str, Tensor]) -> None:
    listed = read_manifest(folder)["tensors"]
    if wrong := listed.keys() ^ tensors.keys():
        kind = "is not in it" if min(wrong) in listed else "is in it alone"
        raise UserError(
            f"adapter {folder}: {file} does not fit the plan in {MANIFEST}: {len(wrong)} tensors, e.g. {min(wrong)} "
            f"{kind}; copy or train the adapter again"
        )
    for name, tensor in tensors.items():
        if list(tensor.shape) != listed[name]:
            raise UserError(
                f"adapter {folder}: {name} has shape {list(tensor.shape)} in {file}, and {MANIFEST} says {listed[name]}; "
                "copy or train the adapter again"
            )


def weights_file(folder: Path) -> Path:
    """The safetensors of an adapter folder.

    Raises:
        UserError: there is none; a pickle in its place is named and never loaded.
    """
    path = next((folder / n for n in (PEFT_WEIGHTS, OWN_WEIGHTS) if (folder / n).is_file()), None)
    if path is not None:
        return path
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"adapter {folder} has {pickles[0]}, a pickle, where {PEFT_WEIGHTS} is due; it was not loaded, since a pickle "
            "can run code: save the tensors as safetensors"
        )
    raise UserError(
        f"adapter {folder} has no weights ({PEFT_WEIGHTS} or {OWN_WEIGHTS}): half written or half copied; copy or train it again"
    )
