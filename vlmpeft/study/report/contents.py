"""What a table is of: rows and blocks that a spec chooses of a study, and every row's entry in every block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from vlmpeft.runtime.errors import UserError
from vlmpeft.study.report.entries import (
    ZERO_SHOT,
    Block,
    Entry,
    Index,
    illegal_reason,
    means,
    without_folders,
)
from vlmpeft.study.report.info import Row
from vlmpeft.study.report.records import BASE_ROW, Study
from vlmpeft.study.report.spec import Spec, chosen
from vlmpeft.study.report.statistics import Comparison, compare_rows, in_family


@dataclass
class Contents:
    """The rows, blocks and entries of a table.

    Args:
        study: whose records they are.
        spec: what of it is shown.

    Raises:
        UserError: the spec names what the study has not, when it is looked at.
    """

    study: Study
    spec: Spec
    not_compared: dict[str, str] = field(default_factory=dict)  # row, and where -> why

    @cached_property
    def index(self) -> Index:
        return Index(self.study)

    @cached_property
    def bases(self) -> dict[str, str]:
        """Base -> title."""
        return chosen(self.spec.bases, _own(self.study.info.bases), "base")

    @cached_property
    def tasks(self) -> dict[str, str]:
        """Task -> title."""
        return chosen(self.spec.tasks, _own(self.study.info.tasks), "task")

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """In order, rows of one group together, with the titles of the spec; the untouched base is the first."""
        known = {row.name: row for row in (ZERO_SHOT, *self.study.info.rows)}
        titles = chosen(self.spec.rows, {name: row.title for name, row in known.items()}, "row")
        rows = [replace(known[name], title=title) for name, title in titles.items()]
        order = dict.fromkeys((None, *self.spec.groups, *(row.group for row in rows)))
        rank = {group: number for number, group in enumerate(order)}
        if self.spec.rows is None or self.spec.groups:
            rows.sort(key=lambda row: rank[row.group])
        named = {group: title or group for group, title in self.spec.groups.items()}
        return tuple(replace(row, group=named.get(row.group or "", row.group)) for row in rows)

    @cached_property
    def metrics(self) -> dict[str, dict[str, str]]:
        """Task -> its metrics, each with its title."""
        found = {task: self._metrics_of(task) for task in self.tasks}
        known = {name: name for recorded in found.values() for name in recorded}
        wanted = chosen(self.spec.metrics, {n: n.replace("_", " ") for n in known}, "metric")
        if self.spec.metrics is not None:
            return {t: {n: wanted[n] for n in wanted if n in found[t]} for t in found}
        primary = {task: self._primary(task) for task in self.tasks}
        return {task: {name: wanted.get(name, name)} for task, name in primary.items()}

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        found = tuple(
            Block(base, task, metric)
            for base in self.bases
            for task in self.tasks
            for metric in self.metrics[task]
        )
        if not found:
            raise UserError(
                f"study {self.study.folder} has no record that can be read{self._damage()}"
            )
        return found

    def _damage(self) -> str:
        return f": {self.study.damaged[0][1]}" if self.study.damaged else ""

    @cached_property
    def reference(self) -> str | None:
        """Name of the row that others are compared with."""
        name = self.spec.reference or self.study.info.reference
        return self.study.info.row(name).name if name else None

    @cached_property
    def entries(self) -> Mapping[tuple[str, Block], Entry]:
        """(row, block) -> what it did there."""
        found = {(r.name, b): self.index.entry(r, b) for b in self.blocks for r in self.rows}
        compared = self._in_families({b: self._comparisons(b, found) for b in self.blocks})
        full = {block: self._mean_of_full(block) for block in self.blocks}
        return {
            (name, block): replace(
                entry,
                comparison=compared[block].get(name),
                full=full[block],
                is_reference=name == self.reference,
            )
            for (name, block), entry in found.items()
        }

    def entry(self, row: Row, block: Block) -> Entry:
        return self.entries[row.name, block]

    def on_base(self, row: Row, block: Block) -> Entry:
        """A row's entry with its runs on every task of the block's base."""
        runs = [r for b in self.blocks if b.base == block.base for r in self.entry(row, b).runs]
        once = {run.folder: run for run in runs}  # a run has several metrics
        return replace(self.entry(row, block), runs=tuple(once.values()))

    def comparisons(self, block: Block) -> list[Comparison]:
        """Of the rows that were compared in a block."""
        found = (self.entry(row, block).comparison for row in self.rows)
        return [one for one in found if one is not None]

    def _metrics_of(self, task: str) -> list[str]:
        runs = [run for run in self.study.runs if run.task == task and run.base in self.bases]
        return list(dict.fromkeys(n for r in runs for n in r.record["metrics"]["tuned"][r.split]))

    def _primary(self, task: str) -> str:
        runs = [run for run in self.study.runs if run.task == task]
        return runs[0].primary if runs else "score"

    def _mean_of_full(self, block: Block) -> float:
        full = self.study.info.full
        rows = [row for row in self.study.info.rows if row.name == full]
        return (means([self.index.entry(row, block) for row in rows]) or [float("nan")])[0]

    def _comparisons(
        self, block: Block, entries: Mapping[tuple[str, Block], Entry]
    ) -> dict[str, Comparison]:
        """Row -> its comparison with the reference."""
        if self.reference is None:
            return {}
        reference = self.index.entry(self.study.info.row(self.reference), block)
        names = [row.name for row in self.rows if row.name not in (BASE_ROW, self.reference)]
        found = {name: self._compare(reference, entries[name, block]) for name in names}
        return {name: one for name, one in found.items() if one is not None}

    def _compare(self, reference: Entry, entry: Entry) -> Comparison | None:
        if not (reference.scores() and entry.scores()):
            return None
        info = self.study.info
        try:
            return compare_rows(
                reference.runs,
                entry.runs,
                entry.block.metric,
                cluster=info.cluster,
                margin=info.margin,
            )
        except UserError as error:
            place = f"{entry.row.title} on {entry.block.task}"
            text = str(error).replace(f"{self.study.folder}/", "")
            self.not_compared[place] = without_folders(text)
            return None

    def _in_families(
        self, found: dict[Block, dict[str, Comparison]]
    ) -> dict[Block, dict[str, Comparison]]:
        """The comparisons, with p adjusted within each family of them."""
        for family in self._families(found):
            adjusted = in_family([found[block][name] for block, name in family])
            for (block, name), one in zip(family, adjusted, strict=True):
                found[block][name] = one
        return found

    def _families(
        self, found: dict[Block, dict[str, Comparison]]
    ) -> Iterator[list[tuple[Block, str]]]:
        if self.spec.family == "table":
            yield [(block, name) for block, of in found.items() for name in of]
            return
        tested: Sequence[str] = [row.name for row in self.rows]
        if not isinstance(self.spec.family, str):
            tested = [self.study.info.row(name).name for name in self.spec.family]
        for block, of in found.items():
            yield [(block, name) for name in of if name in tested]

    def is_illegal(self, row: Row, block: Block) -> bool:
        return illegal_reason(row, block) is not None


def _own(names: Sequence[str]) -> dict[str, str]:
    return {name: without_folders(name) for name in names}
