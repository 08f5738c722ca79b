"""What a study ran on, and the papers that it stands on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from vlmpeft.study.report import numerals
from vlmpeft.study.report.appendix.settings import runs_by_settings
from vlmpeft.study.report.bibliography import bibtex, citations, citations_of_bits
from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.document import Listing, Part
from vlmpeft.study.report.plans import planned
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.settings import written
from vlmpeft.study.report.table import text_table

_DIGITS = 12  # of a hash


def environment(contents: Contents) -> Iterator[Part]:
    """Versions, devices, commits and bases, with how many records have each."""
    found = defaultdict(Counter)
    for run in contents.study.runs:
        for name, version in (run.record.get("versions") or {}).items():
            found[name][str(version)] += 1
        found["device"][str(run.record.get("device"))] += 1
        found["commit"][_commit(run.record.get("git"))] += 1
        found["base"][_base(contents, run)] += 1
    lines = [
        [name, value, numerals.integer(count)]
        for name, values in found.items()
        for value, count in sorted(values.items())
    ]
    if lines:
        yield text_table(["", "", "runs"], lines, numbers=["runs"])


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "not in a working copy"
    return f"{str(git.get('commit'))[:_DIGITS]}{', with changes' if git.get('dirty') else ''}"


def _base(contents: Contents, run: Run) -> str:
    base = run.record.get("base") or {}
    bits = ", ".join(f"{name} {written(bits)}" for name, bits in (base.get("bits") or {}).items())
    title = contents.bases.get(run.base, run.base)
    return ", ".join(filter(None, (title, f"fingerprint {base.get('fingerprint')}", bits)))


def references(contents: Contents) -> Iterator[Part]:
    """BibTeX of the strategies and the quantization that the rows use."""
    keys = set[str]()
    for row in contents.rows:
        for run, *_ in runs_by_settings(contents, row):
            for one in planned(run.record):
                keys |= {*citations(one.component, one.strategy, one.knobs)}
            bits = (run.record.get("base") or {}).get("bits") or {}
            keys |= {*citations_of_bits(str(width) for width in bits.values())}
    if keys:
        yield Listing(bibtex(keys))
