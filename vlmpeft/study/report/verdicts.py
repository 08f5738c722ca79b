"""What a comparison says, in words."""

from __future__ import annotations

import re

from vlmpeft.study.report.statistics import Comparison

_HIGHER = (
    *("exact_match", "token_f1", "contains", "bleu", "rouge_l", "cider_d", "vqa_accuracy", "anls"),
    *("relaxed_accuracy", "choice_accuracy", "json_fields"),
)
_LOWER = ("loss", "perplexity", "numeric_error")


def direction(metric: str) -> int:
    """1 if a higher value is better, -1 if a lower one is, 0 of a metric of the user's own.

    >>> direction("exact_match"), direction("json_fields/f1.colour"), direction("perplexity"), direction("mine")
    (1, 1, -1, 0)
    """
    name = re.split(r"[/.\[]", metric)[0].removesuffix("_chance_corrected")
    return 1 if name in _HIGHER else -1 if name in _LOWER else 0


def verdict(comparison: Comparison) -> str:
    """Better, worse, equivalent or not known, of b against a."""
    margin = f"{comparison.margin:g}"
    if comparison.is_significant:
        size = f", by less than {margin}" if comparison.is_equivalent else ""
        return _change(comparison.difference, direction(comparison.metric)) + size
    if comparison.is_equivalent:
        return f"equivalent within {margin}"
    return f"no difference shown; {comparison.minimum_detectable:.2g} would show"


def _change(difference: float, way: int) -> str:
    if way == 0:
        return "higher" if difference > 0 else "lower"
    return "better" if difference * way > 0 else "worse"
