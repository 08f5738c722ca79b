"""Cells of scores: means, differences from the reference, controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from vlmpeft.study.report import numerals
from vlmpeft.study.report.entries import Entry
from vlmpeft.study.report.statistics import summary
from vlmpeft.study.report.table import Cell, Verdict
from vlmpeft.study.report.verdicts import direction


def score(entry: Entry, decimals: int) -> Cell:
    values = entry.scores()
    text = _spread(entry, values, decimals)
    if not values and entry.failed:
        text = "failed"
    parts = _parts(values) | {"verdict": verdict(entry)}
    return Cell(text, parts, verdict(entry), entry.reasons)


def verdict(entry: Entry) -> Verdict | None:
    """Whether a row is better or worse than the reference, or shown to be as good; None if none of these is settled."""
    found = entry.comparison
    if found is None or found.p_holm is None:  # not in the family
        return None
    if found.is_significant:
        way = direction(entry.block.metric) or 1
        return "better" if found.difference * way > 0 else "worse"
    return "equivalent" if found.is_equivalent else None


def seeds(entry: Entry, decimals: int) -> Cell:
    if entry.is_base or not (entry.runs or entry.expected) or _is_illegal(entry):
        return Cell()
    done = len(entry.runs)
    text = str(done) if done >= entry.expected else f"{done} of {entry.expected}"
    return Cell(text, {"": done})


def difference(entry: Entry, decimals: int) -> Cell:
    """The difference and its interval, or that this is the reference."""
    found = entry.comparison
    if found is None:
        return Cell("reference") if entry.is_reference else Cell()
    ends = [_number(entry, end, decimals, numerals.signed) for end in (found.low, found.high)]
    middle = _number(entry, found.difference, decimals, numerals.signed)
    parts = {"": found.difference, "low": found.low, "high": found.high}
    return Cell(f"{middle} [{', '.join(ends)}]", parts)


def p_holm(entry: Entry, decimals: int) -> Cell:
    return _p(entry.comparison.p_holm if entry.comparison else None)


def p_raw(entry: Entry, decimals: int) -> Cell:
    return _p(entry.comparison.p if entry.comparison else None)


def _p(value: float | None) -> Cell:
    return Cell() if value is None else Cell(numerals.probability(value), {"": value})


def percent_of_full(entry: Entry, decimals: int) -> Cell:
    mean = summary(entry.scores()).mean
    if entry.is_base or not entry.full > 0 or math.isnan(mean):
        return Cell()
    return Cell(numerals.fixed(100 * mean / entry.full, 1), {"": 100 * mean / entry.full})


def chance_corrected(entry: Entry, decimals: int) -> Cell:
    return _scores(entry, entry.scores(f"{entry.block.metric}_chance_corrected"), decimals)


def control(name: str) -> Callable[[Entry, int], Cell]:
    """The score on pictures that are not the item's own."""

    def cell(entry: Entry, decimals: int) -> Cell:
        controls = [(run.record.get("controls") or {}).get(name, {}) for run in entry.runs]
        values = [c[entry.block.metric] for c in controls if entry.block.metric in c]
        return _scores(entry, values, decimals)

    return cell


def retention(entry: Entry, decimals: int) -> Cell:
    return _scores(entry, entry.scores(split="retention"), decimals)


def retention_change(entry: Entry, decimals: int) -> Cell:
    """The source task's score after training less the score before it."""
    pairs = [
        (run.score(entry.block.metric, "retention", "base"), run.score(entry.block.metric, "retention"))
        for run in entry.runs
        if not entry.is_base
    ]  # fmt: skip
    changes = [after - before for before, after in pairs if not math.isnan(after - before)]
    if not changes:
        return Cell()
    mean = summary(changes).mean
    return Cell(_number(entry, mean, decimals, numerals.signed), _parts(changes))


def validation(entry: Entry, decimals: int) -> Cell:
    return _scores(entry, entry.scores(split="val"), decimals)


def loss(entry: Entry, decimals: int) -> Cell:
    values = entry.scores("loss")
    found = summary(values)
    return Cell(numerals.spread(found.mean, found.sd, decimals + 2), _parts(values))


def _scores(entry: Entry, values: list[float], decimals: int) -> Cell:
    return Cell(_spread(entry, values, decimals), _parts(values)) if values else Cell()


def _spread(entry: Entry, values: list[float], decimals: int) -> str:
    found, factor = summary(values), 100 if entry.is_share else 1
    places = decimals if entry.is_share else decimals + 2
    return numerals.spread(factor * found.mean, factor * found.sd, places)


def _number(entry: Entry, value: float, decimals: int, write: Callable[[float, int], str]) -> str:
    """A number in the unit of the entry's scores."""
    return write(100 * value, decimals) if entry.is_share else write(value, decimals + 2)


def _parts(values: Iterable[float]) -> dict[str, Any]:
    found = summary(values)
    return {"": _or_none(found.mean), "sd": _or_none(found.sd)}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _is_illegal(entry: Entry) -> bool:
    return bool(entry.reasons) and not entry.failed
