"""The merge rules as values: name -> what it computes, what it takes, where it was published."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vlmpeft.merging import averaging as rules
from vlmpeft.merging import dropping, sparse
from vlmpeft.runtime.errors import UserError, did_you_mean

Scope = Literal["model", "component", "tensor"]
RuleName = Literal[
    "average",
    "linear",
    "task_arithmetic",
    "cat",
    "svd",
    "slerp",
    "ties",
    "magnitude",
    "breadcrumbs",
    "dare_linear",
    "dare_ties",
    "della",
]


@dataclass(frozen=True)
class Rule:
    """One way to merge.

    Args:
        merge: (T, D) task vectors and knobs -> (D,).
        paper: authors and year.
        url: of the paper.
        scope: over what a task vector extends, as published.
        coefficients: of a rule that is a weighted sum, its (T,) weights.
        needs_gram: the weights depend on the inner products of the task vectors.
        counts: of a rule that cuts by size: (D, knobs) -> ranks of its two cuts.
        whole_tensors: a tensor cannot be merged in pieces.
        rank: of the result; None is whatever is asked for.
    """

    merge: Callable[..., Tensor]
    paper: str
    url: str
    scope: Scope = "model"
    coefficients: Callable[..., Tensor] | None = None
    needs_gram: bool = False
    counts: Callable[..., tuple[int, int]] | None = None
    whole_tensors: bool = False
    rank: Literal["full", "auto", "largest"] | None = None

    @property
    def knobs(self) -> dict[str, Any]:
        """What it takes beside the task vectors, with its defaults."""
        parameters = list(inspect.signature(self.merge).parameters.values())[1:]
        return {p.name: p.default for p in parameters if p.name != "generator"}

    @property
    def is_random(self) -> bool:
        return "generator" in inspect.signature(self.merge).parameters


_SOUPS = ("Wortsman et al. 2022", "https://arxiv.org/abs/2203.05482")
_ARITHMETIC = ("Ilharco et al. 2023", "https://arxiv.org/abs/2212.04089")
_TIES = ("Yadav et al. 2023", "https://arxiv.org/abs/2306.01708")
_DARE = ("Yu et al. 2023", "https://arxiv.org/abs/2311.03099")
_PEFT = ("Mangrulkar et al. 2022, PEFT", "https://github.com/huggingface/peft")

RULES: dict[str, Rule] = {
    "average": Rule(rules.average, *_SOUPS, coefficients=rules.linear_weights),
    "linear": Rule(rules.linear, *_SOUPS, coefficients=rules.linear_weights),
    "task_arithmetic": Rule(rules.task_arithmetic, *_ARITHMETIC, coefficients=rules.sum_weights),
    "cat": Rule(rules.task_arithmetic, *_PEFT, coefficients=rules.sum_weights, rank="full"),
    "svd": Rule(rules.task_arithmetic, *_PEFT, coefficients=rules.sum_weights, rank="largest"),
    "slerp": Rule(
        rules.slerp,
        "Shoemake 1985",
        "https://doi.org/10.1145/325165.325242",
        coefficients=rules.slerp_weights,
        needs_gram=True,
    ),
    "ties": Rule(sparse.ties, *_TIES, counts=sparse.trim_counts),
    "magnitude": Rule(sparse.magnitude, *_TIES, counts=sparse.trim_counts),
    "breadcrumbs": Rule(
        sparse.breadcrumbs,
        "Davari & Belilovsky 2023",
        "https://arxiv.org/abs/2312.06795",
        scope="tensor",
        counts=sparse.breadcrumbs_counts,
    ),
    "dare_linear": Rule(dropping.dare_linear, *_DARE),
    "dare_ties": Rule(dropping.dare_ties, *_DARE),
    "della": Rule(
        dropping.della,
        "Deep et al. 2024",
        "https://arxiv.org/abs/2406.11617",
        scope="tensor",
        whole_tensors=True,
    ),
}


def find_rule(name: str) -> Rule:
    """A rule by its name.

    Raises:
        UserError: there is none; with the closest.
    """
    if name not in RULES:
        raise UserError(f"merge rule {name!r} is unknown.{did_you_mean(name, RULES)}")
    return RULES[name]
