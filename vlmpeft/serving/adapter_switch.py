"""Adapters of one base kept in memory, of which one at a time is attached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlmpeft.adapters.loading import (
    adapter_plan,
    attach_tensors,
    chat_template,
    check_base,
    read_tensors,
)
from vlmpeft.adapters.manifest import read_manifest
from vlmpeft.base.components import Components
from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.strategies.plan import AttachedPlan, Plan


@dataclass(frozen=True)
class KeptAdapter:
    """Everything of an adapter folder that attaching it needs.

    Args:
        name: what it is called here.
        folder: where it was read from.
        manifest: as it was saved.
        plan: what it attaches.
        tensors: what was trained, on the CPU.
        chat_template: Jinja, as it was trained with; None if the folder has none.
        same_bits: whether the base has the widths that it was trained on.
    """

    name: str
    folder: Path
    manifest: dict[str, Any]
    plan: Plan
    tensors: dict[str, Tensor]
    chat_template: str | None
    same_bits: bool


def keep_adapters(
    folders: Iterable[tuple[str, str | Path]], base: dict[str, Any]
) -> dict[str, KeptAdapter]:
    """Adapters by name, in order; no model is needed.

    Args:
        folders: (name, folder) of each.
        base: what `base.origin` says of the base they are for.

    Raises:
        UserError: two of one name, no adapter in a folder, or one of another base.
    """
    kept: dict[str, KeptAdapter] = {}
    for name, folder in folders:
        if name in kept:
            raise UserError(
                f"two adapters are called {name!r}: {kept[name].folder} and {folder}; "
                "name them: --adapter NAME=DIR"
            )
        kept[name] = _read(name, Path(folder), check_base(folder, base) == "same")
    return kept


def _read(name: str, folder: Path, same_bits: bool) -> KeptAdapter:
    return KeptAdapter(
        name,
        folder,
        read_manifest(folder),
        adapter_plan(folder),
        read_tensors(folder),
        chat_template(folder),
        same_bits,
    )


class AdapterSwitch:
    """Puts one of several adapters on a base, or none.

    Args:
        model: the base, with nothing attached.
        components: of the model.
        kept: adapters of this base by name.
    """

    def __init__(self, model: Any, components: Components, kept: dict[str, KeptAdapter]):
        self.model, self.components, self.kept = model, components, kept
        self.active: KeptAdapter | None = None
        self._attached: AttachedPlan | None = None

    def find(self, name: str | None) -> KeptAdapter | None:
        """A kept adapter by name; None is the base.

        Raises:
            UserError: there is none of this name; with the closest there is.
        """
        if name is None:
            return None
        if name in self.kept:
            return self.kept[name]
        there = did_you_mean(name, self.kept) or " There is none; start with --adapter NAME=DIR."
        raise UserError(f"no adapter {name!r}.{there}")

    def use(self, name: str | None) -> None:
        """Attach a kept adapter in place of the one before; None leaves the base alone.

        Raises:
            UserError: an unknown name, which changes nothing, or tensors that do not fit the plan, after
                which nothing is attached.
        """
        wanted = self.find(name)
        if wanted is self.active:
            return
        if self._attached is not None:
            self._attached.detach()
        self._attached = self.active = None
        if wanted is not None:
            folder, plan, tensors = wanted.folder, wanted.plan, wanted.tensors
            self._attached = attach_tensors(folder, plan, tensors, self.model, self.components)
            self.active = wanted
