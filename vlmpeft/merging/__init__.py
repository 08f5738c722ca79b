"""Merging adapters in dW space: pure functions over stacked task vectors, and the strategy that applies them."""

from vlmpeft.merging.rules import average, linear, task_arithmetic, ties

__all__ = ["average", "linear", "task_arithmetic", "ties"]
