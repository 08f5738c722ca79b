"""The arguments of a fit, parsed without being run: many that differ in their plans in the time of a few."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from vlmpeft.cli.config_files import run_arguments, to_stderr
from vlmpeft.cli.read_plan import Planned, read_plan
from vlmpeft.cli.run_parser import PlanCLI
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.study.cells import IllegalCell
from vlmpeft.study.resolving import Resolved

_OF_PLAN = ("--model.base", "--model.plan")
_OF_BOTH = ("--config", "--allow_strategy")


class _Parsed(PlanCLI):
    @property
    def plain(self) -> dict[str, Any]:
        """Its resolved configuration as plain data."""
        return self._plain_config


class RunResolver:
    """Arguments of a fit -> what they mean.

    Base and plan are parsed by themselves, in a fraction of the time that all keys take; the other keys once for all
    runs that agree in them. The configs that are found are announced once each.
    """

    def __init__(self) -> None:
        quiet_libraries()
        self._plans: dict[tuple[str, ...], Planned] = {}
        self._configs: dict[tuple[str, ...], dict[str, Any]] = {}
        self._announced: set[str] = set()

    def __call__(self, args: Sequence[str]) -> Resolved:
        """Parse them; nothing is written.

        Raises:
            UserError: an unknown key or name, a file that is not there, a value of a wrong type.
            IllegalCell: a strategy or a base that its values do not allow.
        """
        found = list(_joined(run_arguments([*args], say=self._announce)))
        both = [arg for arg in found if arg.partition("=")[0] in _OF_BOTH]
        of_plan = [arg for arg in found if arg in both or arg.startswith(_OF_PLAN)]
        planned = self._planned(tuple(of_plan))
        config = self._config(tuple(arg for arg in found if arg in both or arg not in of_plan))
        return Resolved(planned.base, planned.plan, config)

    def _announce(self, line: str) -> None:
        if line not in self._announced:
            to_stderr(line)
            self._announced.add(line)

    def _planned(self, args: tuple[str, ...]) -> Planned:
        if args not in self._plans:
            try:
                self._plans[args] = read_plan([*args])
            except UserError as error:
                raise IllegalCell(str(error)) from error
        return self._plans[args]

    def _config(self, args: tuple[str, ...]) -> dict[str, Any]:
        if args not in self._configs:
            with contextlib.redirect_stdout(sys.stderr):
                parsed = _Parsed("fit", [*args])
            quiet_libraries()  # those that were imported for it, too
            self._configs[args] = parsed.plain
        return self._configs[args]


def _joined(args: Sequence[str]) -> Iterator[str]:
    """Each option and its value as one word."""
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        has_value = "=" in word or not waiting or waiting[0].startswith("--")
        yield word if has_value else f"{word}={waiting.pop(0)}"
