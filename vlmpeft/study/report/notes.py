"""What stands below a table: how its numbers were made, and what about the records a reader has to know."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence

from vlmpeft.study.report import numerals
from vlmpeft.study.report.caveats import caveats
from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.entries import Block
from vlmpeft.study.report.records import BASE_ROW
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.table import MARKS


def notes(contents: Contents, columns: Collection[str]) -> Iterator[str]:
    """The notes of a table.

    Args:
        contents: of the table.
        columns: names of those that are shown.
    """
    yield from _about_scores(contents)
    yield from _about_comparisons(contents, columns)
    yield from _about_columns(contents, columns)
    yield from _about_settings(contents)
    yield from caveats(contents)
    yield _about_records(contents)


def _about_scores(contents: Contents) -> Iterator[str]:
    splits = sorted({run.split for run in contents.study.runs})
    base = [row.title for row in contents.rows if row.name == BASE_ROW]
    said = f"; {base[0]} is the untouched base, scored once" if base else ""
    yield f"Scores: {' and '.join(splits) or 'no'} split, mean +- sample standard deviation over n seeds{said}."


def _about_comparisons(contents: Contents, columns: Collection[str]) -> Iterator[str]:
    if contents.reference is None:
        yield "No row is the reference, so nothing is compared; reference: in a spec names one."
        return
    info = contents.study.info
    title = next(
        (r.title for r in contents.rows if r.name == contents.reference), contents.reference
    )
    found = [one for block in contents.blocks for one in contents.comparisons(block)]
    if not found:
        return
    yield (
        f"Reference: {title}. Differences are to it, item by item, with a 95 % interval of a paired two-level bootstrap (seeds, then "
        f"{'images' if info.cluster == 'image' else f'items of one {info.cluster}'}); p by permutation, adjusted by Holm over {_family(contents)}."
    )  # fmt: skip
    yield (
        f"Bold is better and {MARKS['worse']} is worse than the reference, where adjusted p < 0.05 and the interval leaves out 0; "
        f"{MARKS['equivalent']} is equivalent, where two one-sided tests at 5 % put the difference within {_in_unit(contents, found[0].metric, info.margin)}; "
        "no mark says that neither is shown."
    )  # fmt: skip
    yield from _about_power(contents)
    yield from _about_few_seeds(contents)


def _family(contents: Contents) -> str:
    family = contents.spec.family
    if family == "table":
        return f"all {sum(len(contents.comparisons(b)) for b in contents.blocks)} comparisons of the table"
    if family == "block":
        counts = {len(contents.comparisons(block)) for block in contents.blocks}
        of = " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
        return f"the {of} rows beside the reference within one base, task and metric"
    return f"{', '.join(family)} within one base, task and metric, other rows are not tested"


def _about_power(contents: Contents) -> Iterator[str]:
    """The difference that each block could have found."""
    for block in contents.blocks:
        sizes = [one.minimum_detectable for one in contents.comparisons(block)]
        if sizes:
            shown = detectable(contents, block.metric, min(sizes), max(sizes))
            yield f"Minimum detectable difference{_where(contents, block)} (80 % power, 5 %, two-sided): {shown}."


def detectable(contents: Contents, metric: str, least: float, most: float) -> str:
    """From the least to the most; beyond the scale of a score nothing can be found."""
    if not contents.index.is_share(metric) or most <= 1:
        return _in_unit(contents, metric, least, most)
    if least > 1:
        return "more than the whole scale; it takes more seeds or items to tell"
    return f"{_in_unit(contents, metric, least)} to more than the whole scale"


def _about_few_seeds(contents: Contents) -> Iterator[str]:
    found = [one for block in contents.blocks for one in contents.comparisons(block)]
    if any(one.is_of_items_only for one in found):
        yield "Some rows have one seed: their intervals are over items, and say nothing about other seeds."
    if any(not one.is_paired for one in found):
        yield "Some rows have other seeds than the reference: their seeds are not paired."
    if any(one.is_corpus_level for one in found):
        yield "A metric here is of the whole split: its statistics are of the mean over items."


def _about_columns(contents: Contents, columns: Collection[str]) -> Iterator[str]:
    full = contents.study.info.full
    if "percent_of_full" in columns and full:
        title = next(row.title for row in contents.study.info.rows if row.name == full)
        yield f"% of full: mean score in percent of {title}'s."
    if "percent" in columns:
        yield "%: 100 x trainable / (base + added) parameters."
    if "blank" in columns:
        yield "Blank images: the same questions on grey pictures."
    if "retention" in columns or "retention_change" in columns:
        yield "Source task: what the base was trained on, scored after training; the change is to its score before."


def _about_settings(contents: Contents) -> Iterator[str]:
    info = contents.study.info
    tried = {
        (run.record.get("search") or {}).get("tried")
        for run in contents.study.runs
        if run.record.get("search")
    }
    counts = sorted(count for count in tried if count is not None)
    if len(counts) == 1:
        yield f"Settings were chosen on val; settings tried a row: {counts[0]}."
    elif counts:
        yield f"The rows' settings were searched with unequal budgets: {counts[0]} to {counts[-1]} settings tried."
    if info.match_parameters:
        match = info.match_parameters
        size = (
            f"{match['percent']:g} % of the base" if match.get("percent") else f"{match['total']:,}"
        )
        yield (
            f"Rows have equal numbers of trainable parameters: {size} within {100 * match['tolerance']:g} %, by the choice of "
            "rank, width or tokens."
        )


def _about_records(contents: Contents) -> str:
    runs = (*contents.study.runs, *contents.study.failed)
    return f"Computed from {len(runs)} records, sha256 {records_hash(runs)}."


def records_hash(runs: Sequence[Run]) -> str:
    """The first 16 digits of a hash of every record's bytes, in the order of their folders."""
    digest = hashlib.sha256()
    for run in sorted(runs, key=lambda run: run.folder.as_posix()):
        digest.update((run.folder / "result.json").read_bytes())
    return digest.hexdigest()[:16]


def _where(contents: Contents, block: Block) -> str:
    """Which of several blocks."""
    parts = [contents.bases[block.base]] if len(contents.bases) > 1 else []
    parts += [contents.tasks[block.task]] if len(contents.tasks) > 1 else []
    metrics = contents.metrics[block.task]
    parts += [metrics[block.metric]] if len(metrics) > 1 else []
    return f" on {', '.join(parts)}" if parts else ""


def _in_unit(contents: Contents, metric: str, *values: float) -> str:
    """From the first value to the last, in the unit of the metric's scores."""
    decimals = contents.spec.decimals
    is_share = contents.index.is_share(metric)
    factor, places = (100, decimals) if is_share else (1, decimals + 2)
    shown = dict.fromkeys(numerals.fixed(factor * value, places) for value in values)
    return " to ".join(shown) + (" points" if is_share else "")
