"""Where `Merged` was in version 0.1: configs that spell the path out still find it."""

from vlmpeft.merging.strategy import Merged

__all__ = ["Merged"]
