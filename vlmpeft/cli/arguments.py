"""Command lines whose mistakes are one line, as every other error is."""

from __future__ import annotations

import argparse
from typing import NoReturn

from vlmpeft.runtime.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")
