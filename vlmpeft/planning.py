"""`plan`: what a config would train, resolved on the meta device, where no weights are needed."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import torch
from rich.console import Console

from vlmpeft.base import meta_model, resolve_bits
from vlmpeft.cli import VLMCLI
from vlmpeft.components import find_components
from vlmpeft.plan import attach
from vlmpeft.report import plan_table


class PlanCLI(VLMCLI):
    """Parses the arguments of a fit and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def show_plan(args: list[str]) -> None:
    """Print a config's plan as a table, or with --json as the contract's JSON and nothing else."""
    as_json = "--json" in args
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        sys.argv = sys.argv[:1]
        module = PlanCLI("fit", [arg for arg in args if arg != "--json"]).module
        model = meta_model(module.base)
        attached = attach(module.plan, model, find_components(model))
    if not as_json:
        Console(highlight=False).print(plan_table(attached))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    summary, widths = attached.summary(), resolve_bits(module.base.bits, device)
    for name, component in summary["components"].items():
        component["bits"] = widths.get(name)
    head: dict[str, Any] = {"base": module.base.path, "model_type": model.config.model_type}
    print(json.dumps(head | summary))  # noqa: T201
