"""Several adapters into one, in dW space.

In: adapters and a recipe. Out: a merged dW of every parameter, and the adapter that is made of it. A rule is a pure function over stacked task vectors.
May import: evaluation, adapters, data, strategies, base, runtime; not training.
"""

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
