"""Other libraries' messages kept out of the terminal."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Keep other libraries' hints out of the terminal; call it after they were imported."""
    for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", module=r"(lightning|jsonargparse|torch|transformers|peft)\b.*"
    )
