"""Metric of extraction: the fields of a JSON object, each right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmpeft.data.json_schema import (
    Schema,
    load_schema,
    parse_json,
    schema_fields,
    schema_violations,
    violation,
)
from vlmpeft.data.json_values import (
    Values,
    bag,
    canonical,
    field_f1,
    flatten,
    is_hit,
    read_fields,
    same_fields,
)
from vlmpeft.evaluation.metrics.base import Answer, TextMetric
from vlmpeft.runtime.errors import UserError

__all__ = ["JsonFields", "load_schema", "schema_violations"]

_COUNTS = ("exact", "parsed", "valid", "truncated", "present", "nulls", "listed", "outside")
_RATES = {  # name -> (share of, among); items where the second is None
    "exact": ("exact", None),
    "parse_rate": ("parsed", None),
    "schema_rate": ("valid", None),
    "truncated": ("truncated", None),
    "null_rate": ("nulls", "present"),
    "oov_rate": ("outside", "listed"),
}
_HIT, _SPURIOUS, _MISSED = range(3)


class JsonFields(TextMetric):
    """How much of a JSON object is right, field by field.

    A field is a top-level property, or a nested one by its dotted name. Texts compare after strip, numbers
    by value (1 is 1.0, true is not 1), a list as an unordered multiset of its elements. The headline is the
    mean over items of F1 over (field, value) pairs: a wrong value costs precision and recall. Of several
    references the one with the best F1 counts.

    An answer is parsed as it stands: a ```json fence or text around the object makes it no JSON, and so
    does NaN. One that is no JSON object, or was cut off, has no field. Reported beside the headline:

    - exact: items with all fields equal, whatever the order of keys and the spacing.
    - parse_rate, schema_rate: answers that are JSON, and that keep the schema.
    - truncated: answers cut off by the token limit; these count as not parsed.
    - null_rate: share of the references' non-null fields that were answered null.
    - oov_rate: share of values of enum fields, null aside, that are outside the enumeration.
    - precision.<field>, recall.<field>, f1.<field>: over the split, for the schema's fields that occur in
      references or answers; f1 is the mean of the last.
    - macro_f1.<field>: of an enum field, mean F1 over the values that occur in the references.

    Args:
        schema: path of a JSON Schema file, or the schema itself. Its fields and enumerations are those
            reported by name; fields beyond it count in the headline only.
    """

    name = "json_fields"
    counts: Tensor
    field_counts: Tensor
    value_counts: Tensor

    def __init__(self, *, schema: str | dict[str, Any]):
        super().__init__()
        self.schema: Schema = load_schema(schema)
        self.fields = schema_fields(self.schema)
        self.field_rows = {path: row for row, path in enumerate(self.fields)}
        pairs = [(path, canonical(v)) for path, field in self.fields.items() for v in field.enum]
        self.value_rows = {pair: row for row, pair in enumerate(dict.fromkeys(pairs))}
        for state, size in zip(
            ("counts", "field_counts", "value_counts"), self._empty_counts(), strict=True
        ):
            self.add_state(state, size, dist_reduce_fx="sum")

    def prepare(self, references: Sequence[tuple[str, ...]]) -> None:
        """Check that every reference is a JSON object.

        Raises:
            UserError: some are not; with their number and the first.
        """
        texts = [text for several in references for text in several]
        broken = [(text, problem) for text in texts if (problem := _problem(text))]
        if broken:
            text, problem = broken[0]
            raise UserError(
                f"json_fields: {len(broken)} of {len(texts)} references are no JSON object, "
                f"first {text[:200]!r}: {problem}; if only some are meant to be, say which: "
                "{class_path: JsonFields, groups: [...]} with data.group_by"
            )

    def score(self, generated: str, expected: str) -> float:
        return self.score_item(Answer(generated, (expected,)))

    def score_item(self, answer: Answer) -> float:
        """F1 over (field, value) pairs."""
        got = _parse_answer(answer)
        return field_f1(got, _closest(got, answer.references))

    def update(self, answers: Sequence[Answer]) -> None:
        """Add items."""
        super().update(answers)
        counts, fields, values = self._empty_counts()
        for answer in answers:
            got = _parse_answer(answer)
            want = _closest(got, answer.references)
            counts += torch.tensor(self._count(answer, got, want))
            self._count_fields(got or {}, want, fields)
            self._count_values(got or {}, want, values)
        self.counts += counts.to(self.counts.device)
        self.field_counts += fields.to(self.field_counts.device)
        self.value_counts += values.to(self.value_counts.device)

    def compute(self) -> dict[str, Tensor]:
        """The headline under "", and every rate."""
        count = self.count.clamp(min=1)
        sums = dict(zip(_COUNTS, self.counts.double(), strict=True))
        rates = {
            name: sums[part] / (sums[whole].clamp(min=1) if whole else count)
            for name, (part, whole) in _RATES.items()
        }
        return {"": self.total / count} | rates | self._per_field() | self._per_enum()

    def identity(self) -> dict[str, Any]:
        """With the schema's content."""
        return super().identity() | {"init_args": {"schema": self.schema}}

    def _empty_counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """(_COUNTS), (fields, 3), (enum values, 3); the 3 are hits, spurious, missed."""
        shapes = (len(_COUNTS),), (len(self.fields), 3), (len(self.value_rows), 3)
        counts, fields, values = (torch.zeros(shape, dtype=torch.int64) for shape in shapes)
        return counts, fields, values

    def _count(self, answer: Answer, got: Values | None, want: Values) -> list[int]:
        """One item's _COUNTS."""
        value = _value_of(answer)
        present = [path for path in want if want[path] is not None]
        listed = [
            (path, element)
            for path, field in self.fields.items()
            for element in bag(got or {}, path, field.many).elements()
            if field.enum and element != canonical(None)
        ]
        return [
            same_fields(got, want),
            value is not _BROKEN,
            value is not _BROKEN and violation(value, self.schema) is None,
            not answer.finished,
            len(present),
            sum(got is not None and path in got and got[path] is None for path in present),
            len(listed),
            sum(pair not in self.value_rows for pair in listed),
        ]

    def _count_fields(self, got: Values, want: Values, into: Tensor) -> None:
        for path, row in self.field_rows.items():
            hit = is_hit(path, got, want)
            into[row, _HIT] += hit
            into[row, _SPURIOUS] += path in got and not hit
            into[row, _MISSED] += path in want and not hit

    def _count_values(self, got: Values, want: Values, into: Tensor) -> None:
        for path, field in self.fields.items():
            has, needs = (bag(side, path, field.many) for side in (got, want))
            for column, part in enumerate((has & needs, has - needs, needs - has)):
                for value, times in part.items():
                    if (row := self.value_rows.get((path, value))) is not None:
                        into[row, column] += times

    def _per_field(self) -> dict[str, Tensor]:
        occurring = [(p, row) for p, row in self.field_rows.items() if self.field_counts[row].any()]
        scores: dict[str, Tensor] = {}
        for path, row in occurring:
            precision, recall, f1 = _precision_recall_f1(self.field_counts[row])
            field = ".".join(path)
            scores |= {
                f"precision.{field}": precision,
                f"recall.{field}": recall,
                f"f1.{field}": f1,
            }
        f1s = [scores[f"f1.{'.'.join(path)}"] for path, _ in occurring]
        return {"f1": torch.stack(f1s).mean() if f1s else torch.zeros_like(self.total)} | scores

    def _per_enum(self) -> dict[str, Tensor]:
        f1s: dict[str, list[Tensor]] = {}
        for (path, _), row in self.value_rows.items():
            hits, _, missed = self.value_counts[row]
            if hits + missed > 0:
                f1 = _precision_recall_f1(self.value_counts[row])[2]
                f1s.setdefault(f"macro_f1.{'.'.join(path)}", []).append(f1)
        return {name: torch.stack(values).mean() for name, values in f1s.items()}


_BROKEN = object()


def _value_of(answer: Answer) -> Any:
    """The JSON value of an answer, _BROKEN if it has none."""
    if not answer.finished:
        return _BROKEN
    try:
        return parse_json(answer.generated)
    except ValueError:
        return _BROKEN


def _parse_answer(answer: Answer) -> Values | None:
    value = _value_of(answer)
    return flatten(value) if isinstance(value, dict) else None


def _closest(got: Values | None, references: Sequence[str]) -> Values:
    """The fields of the reference with the best F1, the first of equals."""
    for text in references:
        if problem := _problem(text):
            raise UserError(f"json_fields: reference {text[:200]!r} is no JSON object: {problem}")
    return max(map(read_fields, references), key=lambda want: field_f1(got, want))


def _problem(text: str) -> str | None:
    try:
        read_fields(text)
    except ValueError as error:
        return str(error)
    return None


def _precision_recall_f1(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (hits, spurious, missed); 0 where nothing was counted."""
    hits, spurious, missed = counts.double()
    return (
        hits / (hits + spurious).clamp(min=1),
        hits / (hits + missed).clamp(min=1),
        2 * hits / (2 * hits + spurious + missed).clamp(min=1),
    )
