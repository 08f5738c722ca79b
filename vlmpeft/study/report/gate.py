"""`--fail_if`: conditions on a comparison under which it fails, read strictly; nothing in them is evaluated."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.study.report.statistics import Comparison

_FORM = re.compile(
    r"\s*(?P<name>[^<>=]+?)\s*(?P<sign><=|>=|<|>)\s*(?P<number>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)\s*"
)
_SIGNS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
_ENDS = ("low", "high")


@dataclass(frozen=True)
class Condition:
    """`NAME < NUMBER`, about the difference b - a.

    Args:
        name: of a comparison, or with .low or .high of an end of its interval.
        sign: <, >, <= or >=.
        number: what it is compared with.
    """

    name: str
    sign: str
    number: float

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.number:g}"

    def value(self, found: Mapping[str, Comparison]) -> float:
        """The difference that it is about, or the end of the difference's interval.

        Raises:
            UserError: there is no such comparison, or it has no interval.
        """
        if self.name in found:
            return found[self.name].difference
        name, _, end = self.name.rpartition(".")
        if name not in found or end not in _ENDS:
            raise UserError(f"--fail_if: no metric {self.name!r}.{did_you_mean(self.name, found)}")
        value = float(getattr(found[name], end))
        if math.isnan(value):
            raise UserError(
                f"--fail_if: {self.name} is not known: all items are of one cluster; give more pictures"
            )
        return value

    def holds(self, found: Mapping[str, Comparison]) -> bool:
        """Whether the comparison fails by it."""
        return _SIGNS[self.sign](self.value(found), self.number)


def read_conditions(texts: Sequence[str]) -> list[Condition]:
    """Conditions as they are typed.

    Args:
        texts: each `NAME < NUMBER`, or several with commas between them.

    Raises:
        UserError: one is of another form.
    """
    found = []
    for text in (part for whole in texts for part in _parts(whole)):
        if not (match := _FORM.fullmatch(text)):
            raise UserError(
                f"--fail_if {text.strip()!r} is not of the form 'METRIC < NUMBER' (or >, <=, >=; METRIC.low or METRIC.high "
                "for the ends of the interval), e.g. 'exact_match < -0.01'"
            )
        found.append(Condition(match["name"], match["sign"], float(match["number"])))
    return found


def _parts(text: str) -> list[str]:
    """One condition, whose name may have commas, or several with commas between them."""
    return [text] if _FORM.fullmatch(text) else text.split(",")
