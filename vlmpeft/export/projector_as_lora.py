"""A fully trained part as LoRA: the best factors of its dW, and what they leave out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from vlmpeft.strategies.low_rank import Delta, LowRank, best_of_rank, dense


@dataclass
class Factored:
    """dW of a component's parameters as LoRA.

    Args:
        products: weight -> its LoRA.
        energy: weight -> share of the squared norm of dW that it keeps, of 1.
        squared: weight -> squared norm of dW.
        lost: parameter -> norm of a dW that no LoRA carries.
    """

    products: dict[str, LowRank] = field(default_factory=dict)
    energy: dict[str, float] = field(default_factory=dict)
    squared: dict[str, float] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)

    @property
    def total_energy(self) -> float:
        """Of all weights that became LoRA together, of 1."""
        total = sum(self.squared.values())
        kept = sum(self.energy[name] * norm for name, norm in self.squared.items())
        return kept / total if total else 1.0


def factor(deltas: Mapping[str, Delta], linears: Collection[str], rank: int) -> Factored:
    """The best LoRA of a rank for every dW of a linear layer; what else changed is lost.

    Args:
        deltas: parameter -> dW.
        linears: weights beside which a LoRA can stand.
        rank: of each, or the layer's full rank if that is less.
    """
    found = Factored()
    for name, delta in deltas.items():
        matrix = dense(delta).cpu()
        squared = float(matrix.square().sum())
        if name in linears:
            found.products[name], found.energy[name] = best_of_rank(matrix, rank)
            found.squared[name] = squared
        elif squared:
            found.lost[name] = squared**0.5
    return found
