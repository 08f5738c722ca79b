"""Cells of a row itself and of what it costs: parameters, bytes, seconds, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vlmpeft.study.report import numerals
from vlmpeft.study.report.entries import Entry
from vlmpeft.study.report.statistics import summary
from vlmpeft.study.report.table import Cell

# strategies that train weights the base has; all others add theirs
_OWN_WEIGHTS = ("Full", "LastLayers", "BitFit", "LayerNormTuning")


def title(entry: Entry, decimals: int) -> Cell:
    return Cell(entry.row.title, {"": entry.row.title})


def group(entry: Entry, decimals: int) -> Cell:
    return Cell(entry.row.group or "-", {"": entry.row.group})


def variable(label: str) -> Callable[[Entry, int], Cell]:
    """The value of a variable of the study's grid."""

    def cell(entry: Entry, decimals: int) -> Cell:
        value = entry.row.variables.get(label)
        return Cell() if value is None else Cell(str(value), {"": value})

    return cell


def trainable(entry: Entry, decimals: int) -> Cell:
    return _count(entry, lambda record: record.get("trainable"))


def percent(entry: Entry, decimals: int) -> Cell:
    """100 trainable / (base + added), the papers' convention."""
    shares = [_share(run.record) for run in entry.runs]
    known = [share for share in shares if share is not None]
    return Cell(numerals.percentage(known[0]), {"": known[0]}) if known else Cell()


def adapter_bytes(entry: Entry, decimals: int) -> Cell:
    return _count(entry, lambda record: record.get("adapter_bytes"))


def steps(entry: Entry, decimals: int) -> Cell:
    return _count(entry, lambda record: record.get("steps"))


def tried(entry: Entry, decimals: int) -> Cell:
    return _count(entry, lambda record: (record.get("search") or {}).get("tried"))


def memory(entry: Entry, decimals: int) -> Cell:
    known = _known(entry, lambda record: record.get("peak_memory_bytes"))
    return Cell(numerals.fixed(max(known) / 1e9, 2), {"bytes": max(known)}) if known else Cell()


def _count(entry: Entry, read: Callable[[Mapping[str, Any]], int | None]) -> Cell:
    """A number that is the same for every seed; if it is not, from which to which."""
    known = _known(entry, read)
    if not known:
        return Cell()
    text = numerals.span(known, numerals.integer(known[0]))
    return Cell(text, {"": known[0] if min(known) == max(known) else text})


def _known(entry: Entry, read: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    return [value for run in entry.runs if (value := read(run.record)) is not None]


def _share(record: Mapping[str, Any]) -> float | None:
    if record.get("total") is None or record.get("trainable") is None:
        return None
    return 100 * record["trainable"] / (record["total"] + added(record))


def added(record: Mapping[str, Any]) -> int:
    """Parameters that the base did not have."""
    if "added" in record:
        return record["added"]
    components = (record.get("components") or {}).values()
    strategies = (s for component in components for s in component.get("strategies", ()))
    return sum(s.get("trainable", 0) for s in strategies if s.get("name") not in _OWN_WEIGHTS)


def learning_rate(entry: Entry, decimals: int) -> Cell:
    """The rate of each component, by seed if they differ."""
    written = dict.fromkeys(_rates(run.record) for run in entry.runs)
    text = " / ".join(one for one in written if one)
    return Cell(text, {"": text}) if text else Cell()


def _rates(record: Mapping[str, Any]) -> str:
    rates = {
        name: dict.fromkeys(s["learning_rate"] for s in component.get("strategies", ()) if s.get("learning_rate"))
        for name, component in (record.get("components") or {}).items()
    }  # fmt: skip
    given = {name: "+".join(map(numerals.rate, of)) for name, of in rates.items() if of}
    if len({*given.values()}) == 1:
        return next(iter(given.values()))
    return ", ".join(f"{name} {rate}" for name, rate in given.items())


def seconds(what: str) -> Callable[[Entry, int], Cell]:
    """Mean seconds over seeds."""

    def cell(entry: Entry, decimals: int) -> Cell:
        known = _known(entry, lambda record: (record.get("seconds") or {}).get(what))
        mean = summary(known).mean
        return Cell(numerals.fixed(mean, 1), {"": mean}) if known else Cell()

    return cell


def tokens_per_second(entry: Entry, decimals: int) -> Cell:
    known = _known(entry, _speed)
    mean = summary(known).mean
    return Cell(numerals.fixed(mean, 0), {"": mean}) if known else Cell()


def _speed(record: Mapping[str, Any]) -> float | None:
    tokens, taken = record.get("supervised_tokens"), (record.get("seconds") or {}).get("fit")
    return tokens / taken if tokens and taken else None
