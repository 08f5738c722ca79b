"""A module made ready: with the scorer of its data, with an adapter to score, with one to start from."""

from __future__ import annotations

from typing import Any

from vlmpeft.adapters.loading import adapter_plan, check_base, load_tensors
from vlmpeft.adapters.manifest import read_manifest
from vlmpeft.base.fingerprint import origin
from vlmpeft.data.datamodule import VLMData
from vlmpeft.evaluation.decoding import find_end_ids
from vlmpeft.evaluation.scoring import Scorer
from vlmpeft.runtime.errors import UserError
from vlmpeft.training.module import VLMModule


def make_scorer(module: VLMModule, data: VLMData, adapter: str | None = None) -> Scorer:
    """The scorer of a run: its token limit is the longest training answer, or what the adapter was saved with."""
    if decoding := read_manifest(adapter).get("decoding") if adapter else None:
        limit, ends = decoding["max_new_tokens"], decoding["end_ids"]
    else:
        limit = data.max_target_tokens
        ends = find_end_ids(module.model, module.processor.tokenizer, data.end_ids)
    _check_groups(module, data)
    return Scorer(data.encoder, module.metrics, limit, ends, data.group_by)


def _check_groups(module: VLMModule, data: VLMData) -> None:
    """Refuse a metric for groups that no scored item is in: it would be missing without a word."""
    splits = [split for split in ("val", "test") if data.has(split)]
    items = [item for split in splits for item in data.dataset(split).items]
    there = {str(item.conversation.extra.get(str(data.group_by))) for item in items}
    for metric in module.metrics:
        if items and metric.groups and not there & {*metric.groups}:
            raise UserError(
                f"model.metrics: {metric.name} is for groups {', '.join(metric.groups)}, but by "
                f"data.group_by={data.group_by} there are {', '.join(sorted(there)[:20])}"
            )


def start_from(adapter: str, module: VLMModule, base: dict[str, Any]) -> None:
    """Load an adapter's tensors as the start of a plan that contains its plan.

    Raises:
        UserError: another base, or tensors the plan has no place for.
    """
    check_base(adapter, base)
    assert module.attached is not None
    load_tensors(adapter, module.attached, subset=True)


def use_adapter(adapter: str, module: VLMModule) -> None:
    """Make a module evaluate an adapter: its plan is attached and its tensors are loaded."""
    check_base(adapter, origin(module.base))
    module.plan = adapter_plan(adapter)
    module.configure_model()
    assert module.attached is not None
    load_tensors(adapter, module.attached)
