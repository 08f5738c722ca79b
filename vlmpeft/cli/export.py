"""`export`: an adapter -> a merged checkpoint, a PEFT folder or a vLLM folder."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.base.components import find_components
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import meta_model
from vlmpeft.base.spec import BaseSpec
from vlmpeft.cli.config_files import names_of
from vlmpeft.cli.export_tables import show
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.equivalence import encode_items, read_items
from vlmpeft.evaluation.tower_cache import Sample
from vlmpeft.export.card import card
from vlmpeft.export.checkpoint import write_report
from vlmpeft.export.loadability import Loadability
from vlmpeft.export.target_weights import MergeTarget
from vlmpeft.export.to_checkpoint import MergedExport
from vlmpeft.export.to_peft import AdapterExport
from vlmpeft.runtime.atomic_folder import refuse_existing, written_whole
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.visible import terminal_console
from vlmpeft.strategies.plan import AttachedPlan, allow_strategies, attach


def export_adapter(settings: SimpleNamespace) -> None:
    """Write an adapter so that others can load it, and say what was written.

    Args:
        settings: the options of the verb (see `verbs.export`).

    Raises:
        UserError: options without effect, a broken adapter, one of another base or with parts that the target cannot have,
            a target folder that exists.
        GateFailed: what was written answers otherwise than the attached adapter.
    """
    _check_options(settings)
    out = Path(settings.out)
    refuse_existing(out)
    with _our_options(), contextlib.redirect_stdout(sys.stderr):
        quiet_libraries()
        allow_strategies(names_of(settings.allow_strategy))
        report = _export(settings, out)
    if settings.json:
        print(json.dumps(report))  # noqa: T201
    else:
        show(terminal_console(), report, out)


def _check_options(settings: SimpleNamespace) -> None:
    """Refuse options that would have no effect."""
    for name in ("onto", "max_shard_size"):
        if getattr(settings, name) is not None and settings.to != "merged":
            raise UserError(f"export: --{name} has no effect on --to {settings.to}; leave it out")
    if settings.image_dir is not None and settings.data is None:
        raise UserError("export: --image_dir has no effect without --data; leave it out")
    if settings.projector is not None and settings.to == "merged":
        raise UserError(
            "export: --projector has no effect on --to merged, which keeps the projector; leave it out"
        )
    settings.rank = _rank(settings.projector)


def _rank(projector: str | None) -> int | None:
    if projector is None:
        return None
    found = re.fullmatch(r"svd:([1-9]\d*)", projector)
    if not found:
        raise UserError(
            f"export: --projector {projector}: give svd:R with a rank R of 1 or more, e.g. svd:64"
        )
    return int(found[1])


@contextlib.contextmanager
def _our_options() -> Any:
    """Errors say what can be given to this verb."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("model.base.path=", "--base ")) from error


def _export(settings: SimpleNamespace, out: Path) -> dict[str, Any]:
    """What can be wrong is looked at before the base is loaded, which takes minutes for a big one."""
    adapter = Adapter.read(settings.adapter)
    _ = adapter.tensors
    spec = adapter.trained_base(settings.base)
    base = origin(spec)
    adapter.check_base(base)
    attached = _attached_without_weights(adapter, spec)
    _ = adapter.processor
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = {"format": 1, "to": settings.to, "adapter": adapter.folder, "base": base}
    if settings.to == "merged":
        job: MergedExport | AdapterExport = _merged_job(settings, adapter, spec, attached, device)
    else:
        job = _adapter_job(settings, adapter, spec, attached, device)
    with written_whole(out) as scratch:
        report = about | job.run(scratch) | {"versions": versions()}
        write_report(scratch, report, card(report, adapter.manifest.raw["plan"]))
    return report


def _attached_without_weights(adapter: Adapter, spec: BaseSpec) -> AttachedPlan:
    model = meta_model(spec)
    return attach(adapter.plan, model, find_components(model))


def _merged_job(
    settings: SimpleNamespace,
    adapter: Adapter,
    spec: BaseSpec,
    attached: AttachedPlan,
    device: torch.device,
) -> MergedExport:
    without = [a for a in attached.attachments if a.deltas is None]
    if without:
        names = ", ".join(f"{type(a.strategy).__name__} on {a.component}" for a in without)
        raise UserError(
            f"--to merged: {names} is no change of weights, so it has no dW to merge; use adapter {settings.adapter} as it is, "
            "by test, predict or chat --adapter"
        )
    target = MergeTarget(settings.adapter, spec, device, settings.onto or "full")
    target.check(attached.plan)
    return MergedExport(
        adapter,
        target,
        _samples(settings, adapter),
        settings.tolerance,
        settings.max_shard_size or "5GB",
    )


def _adapter_job(
    settings: SimpleNamespace,
    adapter: Adapter,
    spec: BaseSpec,
    attached: AttachedPlan,
    device: torch.device,
) -> AdapterExport:
    form = Loadability(settings.adapter, settings.to, attached, settings.rank)
    form.check()
    samples = _samples(settings, adapter)
    return AdapterExport(
        adapter,
        spec,
        form,
        Path(settings.out),
        samples,
        device,
        settings.tolerance,
    )


def _samples(settings: SimpleNamespace, adapter: Adapter) -> list[Sample]:
    items = read_items(settings.data, settings.image_dir, settings.samples or 8)
    return encode_items(items, Encoder(adapter.processor, None, adapter.manifest.max_pixels))
