"""`export`: an adapter -> a merged checkpoint, a PEFT folder or a vLLM folder."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, get_args

import torch

from vlmpeft.adapters.adapter import Adapter
from vlmpeft.base.components import find_components
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import meta_model
from vlmpeft.base.spec import BaseSpec
from vlmpeft.cli.arguments import Parser
from vlmpeft.cli.config_files import names_of
from vlmpeft.cli.export_tables import show
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.equivalence import BUILT_IN, encode_items, read_items
from vlmpeft.evaluation.tower_cache import Sample
from vlmpeft.export.card import card
from vlmpeft.export.checkpoint import write_report
from vlmpeft.export.loadability import Loadability
from vlmpeft.export.target_weights import MergeTarget, Onto
from vlmpeft.export.to_checkpoint import MergedExport
from vlmpeft.export.to_peft import AdapterExport
from vlmpeft.runtime.atomic_folder import refuse_existing, written_whole
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.visible import terminal_console
from vlmpeft.strategies.plan import ALLOW_HELP, AttachedPlan, allow_strategies, attach


def main(args: list[str]) -> None:
    """Run `export ...`.

    Raises:
        UserError: wrong options, a broken adapter, one of another base or with parts that the target cannot have, a
            target folder that exists.
        GateFailed: what was written answers otherwise than the attached adapter.
    """
    settings = _parser().parse_args(args)
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


def _parser() -> Parser:
    parser = Parser(
        prog="export",
        description="Write an adapter so that others can load it.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--adapter", required=True, metavar="DIR", help="what `fit` or `merge` wrote")
    add("--to", required=True, choices=("merged", "peft", "vllm"), help="what is written")
    add("--out", required=True, metavar="DIR", help="folder that is written; it must not exist")
    add("--base", metavar="PATH", help="where the base is now; default: as the adapter says")
    add("--data", metavar="FILE", help=f"conversations to compare answers by; default {BUILT_IN}")
    add("--image_dir", metavar="DIR", help="what their image paths are relative to")
    add("--samples", type=_positive, help="how many of them; 8")
    add(
        "--onto",
        choices=get_args(Onto),
        help="weights that dW of an adapter of a quantized base is added to; full",
    )
    add("--projector", metavar="svd:R", help="a fully trained projector becomes LoRA of rank R")
    add(
        "--tolerance",
        type=_tolerance,
        help="largest |delta logits|, which alone decides then",
    )
    add("--max_shard_size", help="of a merged checkpoint's files; 5GB")
    add("--allow_strategy", metavar="NAMES", help=ALLOW_HELP)
    add("--json", action="store_true", help="JSON and nothing else on stdout")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of samples; give 1 or more")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a difference of logits; give 0 or more")
    return value


def _check_options(settings: argparse.Namespace) -> None:
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
        raise UserError(str(error).replace("--model.base.path", "--base")) from error


def _export(settings: argparse.Namespace, out: Path) -> dict[str, Any]:
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
    settings: argparse.Namespace,
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
    settings: argparse.Namespace,
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


def _samples(settings: argparse.Namespace, adapter: Adapter) -> list[Sample]:
    items = read_items(settings.data, settings.image_dir, settings.samples or 8)
    return encode_items(items, Encoder(adapter.processor, None, adapter.manifest.max_pixels))
