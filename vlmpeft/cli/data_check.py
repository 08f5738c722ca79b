"""`data check`: everything there is to know about a config's data before anything is trained."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from vlmpeft.cli.run_parser import PlanCLI
from vlmpeft.data.audit.audit import audit
from vlmpeft.data.audit.html_page import write_page
from vlmpeft.data.audit.text import print_audit
from vlmpeft.evaluation.metrics import JsonFields
from vlmpeft.runtime.errors import GateFailed
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.visible import terminal_console, visible, visible_json


def check_data(run_args: list[str], html: Path | None, as_json: bool) -> None:
    """Audit the data of a config.

    Args:
        run_args: keys of a run.
        html: also a page with thumbnails, written to this file.
        as_json: print the findings as JSON and nothing else.

    Raises:
        GateFailed: something in it would stop or mislead a run.
    """
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        quiet_libraries()
        cli = PlanCLI("fit", run_args)
        data, schemas = (
            cli.data,
            [m.schema for m in cli.module.metrics if isinstance(m, JsonFields)],
        )
        data.on_error, data.over_length = "skip", "drop"
        data.prepare(cli.module.processor)
        found = audit(data, next(iter(schemas), None))
    if html:
        write_page(html, found, data)
    if as_json:
        print(visible_json(json.dumps(found.to_dict(), ensure_ascii=False)))  # noqa: T201
    else:
        print_audit(terminal_console(), found)
        if html:
            print(visible(f"page: {html}"))  # noqa: T201
    if errors := found.errors:
        raise GateFailed(f"{len(errors)} error(s) in the data: {errors[0].text}")
