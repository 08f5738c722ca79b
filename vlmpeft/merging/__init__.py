"""Merging adapters in dW space: pure functions over stacked task vectors, and what applies them to adapters."""

from vlmpeft.merging.averaging import average, linear, slerp, task_arithmetic
from vlmpeft.merging.dropping import dare_linear, dare_ties, della
from vlmpeft.merging.sparse import breadcrumbs, magnitude, ties

__all__ = [
    "average",
    "breadcrumbs",
    "dare_linear",
    "dare_ties",
    "della",
    "linear",
    "magnitude",
    "slerp",
    "task_arithmetic",
    "ties",
]
