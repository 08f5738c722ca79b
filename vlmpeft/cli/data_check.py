"""`data check`: everything there is to know about a config's data before anything is trained."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from vlmpeft.cli.arguments import Parser
from vlmpeft.cli.plan import PlanCLI
from vlmpeft.data.audit.audit import audit
from vlmpeft.data.audit.html_page import write_page
from vlmpeft.data.audit.text import print_audit
from vlmpeft.evaluation.metrics import JsonFields
from vlmpeft.runtime.errors import GateFailed
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.visible import terminal_console, visible, visible_json


def check_data(args: list[str]) -> None:
    """Audit the data of a config: `data check --config C [--html FILE] [--json] [overrides]`.

    Raises:
        GateFailed: something in it would stop or mislead a run.
    """
    own, rest = _own_arguments(args)
    with contextlib.redirect_stdout(sys.stderr if own.json else sys.stdout):
        quiet_libraries()
        sys.argv = sys.argv[:1]  # LightningCLI warns about arguments given twice
        cli = PlanCLI("fit", rest)
        data, schemas = (
            cli.data,
            [m.schema for m in cli.module.metrics if isinstance(m, JsonFields)],
        )
        data.on_error, data.over_length = "skip", "drop"
        data.prepare(cli.module.processor)
        found = audit(data, next(iter(schemas), None))
    if own.html:
        write_page(own.html, found, data)
    if own.json:
        print(visible_json(json.dumps(found.to_dict(), ensure_ascii=False)))  # noqa: T201
    else:
        print_audit(terminal_console(), found)
        if own.html:
            print(visible(f"page: {own.html}"))  # noqa: T201
    if errors := found.errors:
        raise GateFailed(f"{len(errors)} error(s) in the data: {errors[0].text}")


def _own_arguments(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="data check",
        description="Counts, lengths, duplicates, contradictions and labels of a config's data.",
        epilog="Every option of `fit` is taken as well, e.g. --config C, --data.train FILE.",
    )
    parser.add_argument("--html", type=Path, help="write a page with thumbnails to this file")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON alone")
    return parser.parse_known_args(args)
