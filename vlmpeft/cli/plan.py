"""`plan`: what a config would train, resolved on the meta device, where no weights are needed."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from vlmpeft.base.components import find_components
from vlmpeft.base.loading import meta_model
from vlmpeft.base.spec import NUM_BITS, resolve_bits
from vlmpeft.cli.read_plan import read_plan
from vlmpeft.preflight.leaks import leak_notes
from vlmpeft.preflight.plan_table import plan_table
from vlmpeft.preflight.reachability import Reachability, find_unreachable
from vlmpeft.preflight.servability import Engine, Verdict, judge
from vlmpeft.runtime.errors import GateFailed
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.visible import terminal_console
from vlmpeft.strategies.plan import AttachedPlan, attach


def show_plan(run_args: list[str], engine: Engine | None, as_json: bool) -> None:
    """Print a config's plan as a table, or as the contract's JSON and nothing else.

    Args:
        run_args: keys of a run.
        engine: also whether it can load what the plan will leave.
        as_json: whether as JSON.

    Raises:
        GateFailed: the engine cannot.
    """
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        quiet_libraries()
        planned = read_plan(run_args)
        model = meta_model(planned.base)
        attached = attach(planned.plan, model, find_components(model))
        reach = find_unreachable(attached)
    verdicts = judge(attached, engine) if engine else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    widths = resolve_bits(planned.base.bits, device)
    if not as_json:
        console = terminal_console()
        console.print(plan_table(attached, widths))
        for line in _unreachable_lines(attached, reach):
            console.print(line, soft_wrap=True)
        for name, verdict in verdicts.items():
            answer = "yes" if verdict.is_loadable else "no"
            console.print(f"{engine}, {name}: {answer}  {verdict.reason}", soft_wrap=True)
        _gate(engine, verdicts)
        return
    summary = attached.summary()
    for name, component in summary["components"].items():
        width = widths.get(name)
        component |= {"width": width, "bits": NUM_BITS.get(width or "")}
        component["reachable"] = reach.count(attached, name)
    notes = leak_notes(attached)
    notes += [f"reachable is not known: {reach.reason}"] if reach.unreachable is None else []
    head: dict[str, Any] = {"base": planned.base.path, "model_type": model.config.model_type}
    if engine:
        head["for"] = {engine: {name: asdict(verdict) for name, verdict in verdicts.items()}}
    print(json.dumps(head | summary | {"notes": notes}))  # noqa: T201
    _gate(engine, verdicts)


def _unreachable_lines(attached: AttachedPlan, reach: Reachability) -> Iterator[str]:
    """One line per component of which a part can get no gradient."""
    for name, component in attached.summary()["components"].items():
        count, trainable = reach.count(attached, name), component["trainable"]
        if count is not None and count != trainable:
            yield f"{name}: {count:,} of {trainable:,} trained parameters can get a gradient"


def _gate(engine: str | None, verdicts: dict[str, Verdict]) -> None:
    refused = [name for name, verdict in verdicts.items() if not verdict.is_loadable]
    if refused:
        raise GateFailed(f"{engine} cannot load what this plan leaves on {', '.join(refused)}")
