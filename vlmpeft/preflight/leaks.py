"""What a plan's targets would also have hit, had they been matched by suffix over the whole model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from torch import nn

from vlmpeft.strategies.plan import AttachedPlan


def leak_notes(attached: AttachedPlan, *, explicit_only: bool = False) -> list[str]:
    """One line per attachment and other component whose layers have the targets' last name parts too.

    PEFT matches names by suffix: `q_proj` for LLaVA's language model lands in CLIP as well (peft#2615).

    Args:
        attached: a plan on a model.
        explicit_only: leave out strategies whose targets are null.
    """
    taken = {target for attachment in attached.attachments for target in attachment.targets}
    free: dict[str, list[str]] = defaultdict(list)  # component -> last name parts of its layers
    for name, module in attached.model.named_modules():
        if isinstance(module, nn.Linear) and name not in taken:
            free[attached.components.component_of(name)].append(_last(name))
    notes = []
    for attachment in attached.attachments:
        chosen = getattr(attachment.strategy, "targets", ())  # of a strategy without any: nothing
        if chosen == () or (chosen is None and explicit_only):
            continue
        suffixes = dict.fromkeys(_last(target) for target in attachment.targets)
        others = (item for item in free.items() if item[0] != attachment.component)
        notes += [note for name, layers in others if (note := _note(suffixes, name, layers))]
    return notes


def _note(suffixes: Iterable[str], component: str, layers: Sequence[str]) -> str:
    """E.g. 'q_proj and v_proj also exist in vision: 48 modules left alone'; empty if they do not."""
    shared = [suffix for suffix in suffixes if suffix in layers]
    count = sum(layers.count(suffix) for suffix in shared)
    *most, last = shared or [""]
    named = f"{', '.join(most)} and {last}" if most else last
    verb, modules = "exist" if most else "exists", "module" if count == 1 else "modules"
    return f"{named} also {verb} in {component}: {count} {modules} left alone" if shared else ""


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
