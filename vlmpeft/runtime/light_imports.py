"""Heavy parts of other libraries that a verb without training does not need, left out while those libraries are imported."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator


def import_peft_without_bitsandbytes() -> None:
    """Import PEFT as if bitsandbytes were not installed; `benchmarks/cli.py` measures what that saves.

    PEFT looks once whether it can wrap quantized layers. So this is for a process that will hold no quantized weights,
    such as `plan`, and does nothing where PEFT is imported already.
    """
    if "peft" in sys.modules:
        return
    with _without("bitsandbytes"):
        found = importlib.import_module("peft.import_utils")
        found.is_bnb_available()  # PEFT remembers the answers
        found.is_bnb_4bit_available()


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """As if a package were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  how Python marks a module that is not to be found
    try:
        yield
    finally:
        del sys.modules[name]
