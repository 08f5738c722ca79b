"""VeRA: shared random projections, trained scaling vectors."""

from __future__ import annotations

from dataclasses import dataclass

from vlmpeft.strategies.contract import Attachment, Component, Strategy
from vlmpeft.strategies.peft_layers import attach_tuner


@dataclass(frozen=True)
class VeRA(Strategy):
    """W x + b * B (d * (A x)), A and B random, frozen and shared by all targets (Kopiczko et al. 2023, arXiv:2310.11454, eq. 2).

    A and B follow from `seed` and are not saved. d_out + r parameters a target.

    Args:
        r: rank of the shared projections; larger than a LoRA's.
        dropout: probability of zeroing an input while training.
        d_initial: what the entries of d start at; b starts at 0.
        seed: of A and B.
        targets: as of LoRA.
        learning_rate: about ten times a LoRA's.
    """

    r: int = 256
    dropout: float = 0.0
    d_initial: float = 0.1
    seed: int = 0
    targets: tuple[str, ...] | None = None
    learning_rate: float = 4e-3

    def attach(self, component: Component) -> Attachment:
        from peft import VeraConfig

        targets = list(component.match_linears(self.targets))
        config = VeraConfig(
            r=self.r,
            vera_dropout=self.dropout,
            d_initial=self.d_initial,
            projection_prng_key=self.seed,
            save_projection=True,  # PEFT would warn otherwise; what is saved is ours to say
            target_modules=targets,
        )
        # a name of its own: the projections are filed under it, and two components need two
        attachment, _ = attach_tuner(self, component, config, targets, f"vera_{component.name}")
        return attachment
