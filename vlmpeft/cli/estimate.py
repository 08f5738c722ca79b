"""`estimate`: bytes and FLOPs of a plan, beside full fine-tuning and QLoRA, before anything is loaded."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from vlmpeft.base.spec import BaseSpec
from vlmpeft.cli.estimate_tables import GB, print_report
from vlmpeft.cli.run_parser import PlanCLI
from vlmpeft.preflight.forecast import (
    CHECKPOINTED,
    PLAIN,
    Forecast,
    Load,
    blank_of,
    check_length,
    forecast,
    full_fine_tuning,
    most_rank,
    qlora,
    rank_of,
    with_rank,
)
from vlmpeft.preflight.static_memory import (
    FULL_FINE_TUNING_BYTES,
    convention_bytes,
    largest,
    shortcut_bytes,
)
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.visible import terminal_console
from vlmpeft.strategies.plan import Plan

Cases = dict[str, tuple[BaseSpec, Plan]]


def show_estimate(run_args: list[str], wishes: SimpleNamespace) -> None:
    """Print what a config's plan will take as tables, or as JSON and nothing else.

    Args:
        run_args: keys of a run.
        wishes: the options of the verb (see `verbs.estimate`).

    Raises:
        UserError: a value that makes no sense, or a base of which pictures are unknown.
    """
    wishes.device = wishes.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.redirect_stdout(sys.stderr if wishes.json else sys.stdout):
        quiet_libraries()
        cli = PlanCLI("fit", run_args)
    load = _load(cli, wishes)
    device = torch.device(wishes.device)
    cases = _cases(cli.module.base, cli.module.plan)
    found = {name: forecast(*case, load, device) for name, case in cases.items()}
    kind = CHECKPOINTED if cli.module.gradient_checkpointing else PLAIN
    report = _report(cli.module, wishes, load, kind, found)
    if wishes.gb:
        report["largest"] = _largest(cases, found, load, device, kind, int(wishes.gb * GB))
    if wishes.json:
        print(json.dumps(report))  # noqa: T201
    else:
        print_report(terminal_console(), report)


def _load(cli: Any, wishes: SimpleNamespace) -> Load:
    """The batch: what the options say, else what the data's settings allow at most."""
    data = cli.data
    blank = blank_of(cli.module.base, data.max_pixels, data.chat_template)
    place = "--tokens" if wishes.tokens else "data.max_length"
    tokens = wishes.tokens or data.max_length
    check_length(blank, tokens, place)
    most = tokens - blank.start
    answer = wishes.answer_tokens or most
    if answer > most:
        raise UserError(
            f"estimate --answer_tokens {answer}: {place} {tokens} leaves {most} after the picture and the prompt; "
            "give fewer, or more --tokens"
        )
    accumulates = cli.settings.trainer.accumulate_grad_batches > 1
    batch = wishes.batch or data.batch_size
    return Load(blank, batch, tokens, answer, accumulates, wishes.optimizer)


def _cases(spec: BaseSpec, plan: Plan) -> Cases:
    return {
        "plan": (spec, plan),
        "full": full_fine_tuning(spec),
        "qlora": qlora(spec, plan),
    }


def _report(
    module: Any, wishes: SimpleNamespace, load: Load, kind: str, found: dict[str, Forecast]
) -> dict[str, Any]:
    plan = found["plan"].summary
    base = {name: entry["parameters"] for name, entry in plan["components"].items()}
    total = sum(base.values())
    return {
        "base": module.base.path,
        "device": wishes.device,
        "batch": load.batch,
        "tokens": load.tokens,
        "image_tokens": load.blank.image_tokens,
        "answer_tokens": load.answer_tokens,
        "optimizer": load.optimizer,
        "gradient_checkpointing": kind == CHECKPOINTED,
        "rank": rank_of(module.plan),
        "parameters": base,
        "rows": {name: _row(one) for name, one in found.items()},
        "conventions": {
            f"full_{FULL_FINE_TUNING_BYTES}_bytes_a_parameter": convention_bytes(total),
            "full_vision_frozen_in_bf16": convention_bytes(total - base["vision"], base["vision"]),
            "bf16_weights": 2 * total,
            "shortcut": shortcut_bytes(total, plan["added"]),
            "shortcut_qlora": shortcut_bytes(total, found["qlora"].summary["added"]),
        },
    }


def _row(one: Forecast) -> dict[str, Any]:
    return {
        **{key: one.summary[key] for key in ("trainable", "added", "percent")},
        "weights": {name: dict(widths) for name, widths in one.static.weights.items()},
        "weight_bytes": one.static.weight_total,
        "adapter_bytes": one.static.adapters,
        "gradient_bytes": one.static.gradients,
        "optimizer_bytes": one.static.optimizer,
        "static_bytes": one.static.total,
        "steps": {kind: asdict(step) for kind, step in one.steps.items()},
        "peak_bytes": {kind: one.peak(kind) for kind in one.steps},
        "unknown": one.unknown,
    }


def _largest(
    cases: Cases,
    found: dict[str, Forecast],
    load: Load,
    device: torch.device,
    kind: str,
    limit: int,
) -> dict[str, Any]:
    """The largest batch of every case, and the largest rank of the plan, in `limit` bytes."""
    batches: dict[str, int | None] = {}
    for name, case in cases.items():
        size = _size_by_batch(case, found[name], load, device, kind)
        batches[name] = largest(size, limit) if size else None
    spec, plan = cases["plan"]
    now, rank = rank_of(plan), None
    if now and kind in found["plan"].steps:

        @cache
        def size_by_rank(r: int) -> int:
            one = found["plan"] if r == now else None
            return (one or forecast(spec, with_rank(plan, r), load, device, (kind,))).peak(kind)

        rank = largest(size_by_rank, limit, now, most_rank(spec, plan))
    return {"bytes": limit, "batch": batches, "rank": rank}


def _size_by_batch(
    case: tuple[BaseSpec, Plan], one: Forecast, load: Load, device: torch.device, kind: str
) -> Callable[[int], int] | None:
    """Peak bytes of a batch, on a line through this one and another; both have padding where either does."""
    if kind not in one.steps:
        return None
    here, there = (load.batch, 2) if load.batch > 2 else (2, 4)
    known = {load.batch: one}
    low, high = (
        known.get(n) or forecast(*case, replace(load, batch=n), device, (kind,))
        for n in (there, here)
    )
    slope = (high.steps[kind].peak_bytes - low.steps[kind].peak_bytes) / (here - there)

    def size(batch: int) -> int:
        peak = low.steps[kind].peak_bytes + math.ceil(slope * (batch - there))
        step = replace(one.steps[kind], peak_bytes=peak)
        return replace(one, steps={kind: step}).peak(kind)

    return size
