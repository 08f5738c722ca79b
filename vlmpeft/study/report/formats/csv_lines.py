"""CSV: one line for each row of a table on each base, task and metric, numbers at full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from vlmpeft.runtime.visible import visible
from vlmpeft.study.report.table import Table


def as_csv(table: Table) -> str:
    """The table's records with a header; no value is an empty field.

    Scores are as the records have them, 0.947 rather than 94.7.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table.records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _plain(v) for k, v in record.items()} for record in table.records)
    return text.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = " ".join(map(str, value))
    return visible("" if value is None else str(value))
