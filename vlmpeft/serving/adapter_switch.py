"""Adapters of one base kept in memory, of which one at a time is attached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.adapters.loading import attach_adapter
from vlmpeft.base.components import Components
from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.strategies.plan import AttachedPlan


@dataclass(frozen=True)
class KeptAdapter:
    """An adapter with everything in memory that attaching it needs.

    Args:
        name: what it is called here.
        adapter: as it was read.
        same_bits: whether the base has the widths that it was trained on.
    """

    name: str
    adapter: Adapter
    same_bits: bool


def keep_adapters(
    adapters: Iterable[tuple[str, Adapter]], base: dict[str, Any]
) -> dict[str, KeptAdapter]:
    """Adapters by name, in order; no model is needed.

    Args:
        adapters: (name, adapter) of each.
        base: what `base.origin` says of the base they are for.

    Raises:
        UserError: two of one name, one of another base, or broken tensors.
    """
    kept: dict[str, KeptAdapter] = {}
    for name, adapter in adapters:
        if name in kept:
            raise UserError(
                f"two adapters are called {name!r}: {kept[name].adapter.folder} and {adapter.folder}; "
                "name them: --adapter NAME=DIR"
            )
        same_bits = adapter.check_base(base) == "same"
        _ = adapter.tensors, adapter.chat_template  # read now: the folder may change or go
        kept[name] = KeptAdapter(name, adapter, same_bits)
    return kept


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
            self._attached = attach_adapter(wanted.adapter, self.model, self.components)
            self.active = wanted
