"""What about a study's records a reader has to know before trusting a table of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.entries import seed_name, without_folders
from vlmpeft.study.report.records import BASE_ROW
from vlmpeft.study.report.run import Run

_SCHEDULE = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision")
_NO_MATTER = ("seed", "path", "image_dir", "num_workers", "cache_bytes")
_SHOWN = 40  # characters of a value


def caveats(contents: Contents) -> Iterator[str]:
    """What is mixed, missing or unlike among the records."""
    study = contents.study
    yield from _mixed(study.runs)
    yield from _unlike(study.runs)
    yield from _repeated(study.runs)
    yield from _at_edge(study.runs)
    yield from _other_data(contents)
    yield from (f"{where} is not compared: {why}" for where, why in contents.not_compared.items())
    yield from _elsewhere(contents)
    for path, reason in study.damaged:
        name = path.relative_to(study.folder).as_posix()
        yield f"Left out: {without_folders(reason.replace(str(path), name))}"


def _mixed(runs: Sequence[Run]) -> Iterator[str]:
    """Versions and devices that are not the same for every record."""
    packages = dict.fromkeys(name for run in runs for name in run.record.get("versions") or ())
    for name in packages:
        found = Counter(str((run.record.get("versions") or {}).get(name)) for run in runs)
        if len(found) > 1:
            yield f"Mixed versions of {name}: {_counted(found)}."
    found = Counter(str(run.record.get("device")) for run in runs)
    if len(found) > 1:
        yield f"Mixed devices: {_counted(found)}."


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{value} ({count} records)" for value, count in sorted(found.items()))


def _unlike(runs: Sequence[Run]) -> Iterator[str]:
    """Records that differ from the others of their row by more than the seed."""
    rows = defaultdict(list)
    for run in runs:
        rows[run.row, run.task, run.base].append(run)
    for (row, task, _), same in rows.items():
        for run, keys in _differences(same):
            yield f"{row} on {task}: {seed_name(run)} differs from the other seeds in {', '.join(keys)}."


def _differences(runs: Sequence[Run]) -> Iterator[tuple[Run, list[str]]]:
    """Of each run that differs from most of the others: the keys, with both values."""
    flat = [dict(_flat(_identity(run.record), "")) for run in runs]
    if all(one == flat[0] for one in flat):
        return
    keys = dict.fromkeys(key for one in flat for key in one)
    usual = {key: Counter(str(one.get(key)) for one in flat).most_common(1)[0][0] for key in keys}
    for run, one in zip(runs, flat, strict=True):
        unlike = [key for key in keys if str(one.get(key)) != usual[key]]
        if unlike:
            yield run, [f"{key} ({_cut(one.get(key))}, not {_cut(usual[key])})" for key in unlike]


def _identity(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What makes a run this run; of a record that does not say it, what the config says that matters."""
    if found := record.get("identity"):
        return found
    config = record.get("config") or {}
    trainer = config.get("trainer") or {}
    kept = {key: config.get(key) for key in ("model", "data", "eval")}
    return kept | {
        "trainer": {key: trainer.get(key) for key in _SCHEDULE},
        "base": {key: (record.get("base") or {}).get(key) for key in ("fingerprint", "bits")},
        "data": (config.get("data") or {}, record.get("data")),
    }


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if str(name) not in _NO_MATTER:
                yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, tuple):
        for inner in value:
            yield from _flat(inner, key)
    else:
        yield key, value


def _cut(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _repeated(runs: Sequence[Run]) -> Iterator[str]:
    found = Counter((run.row, run.task, run.base, run.seed) for run in runs)
    for (row, task, _, seed), count in found.items():
        if count > 1:
            yield f"{row} on {task} has {count} records of seed {seed}."


def _at_edge(runs: Sequence[Run]) -> Iterator[str]:
    """Settings whose best value is the smallest or the largest that was tried: a better one may lie outside."""
    found = dict[str, None]()
    for run in runs:
        for key in (run.record.get("search") or {}).get("at_edge") or ():
            found[f"{run.row} on {run.task}: {key.rpartition('.')[2]}"] = None
    if found:
        yield f"The best value is at the edge of those tried: {'; '.join(found)}."


def _other_data(contents: Contents) -> Iterator[str]:
    """Tasks of which not every run was scored on the same data."""
    for base in contents.bases:
        for task in contents.tasks:
            runs = contents.index.of_block(task, base)
            hashes = {((r.record.get("data") or {}).get(r.split) or {}).get("sha256") for r in runs}
            if len(hashes) > 1:
                yield f"{task}: the runs were scored on {len(hashes)} different sets of data."


def _elsewhere(contents: Contents) -> Iterator[str]:
    """Records that the table has no place for, unless a spec left them out."""
    info, study = contents.study.info, contents.study
    rows, tasks = {BASE_ROW, *(row.name for row in info.rows)}, {*info.tasks}
    lost = [
        run
        for run in (*study.runs, *study.failed)
        if run.row not in rows or run.task not in tasks or run.base not in info.bases
    ]
    if lost:
        places = dict.fromkeys(f"{run.row} on {run.task} of {run.base}" for run in lost)
        shown = ", ".join(list(places)[:5]) + (", ..." if len(places) > 5 else "")
        yield f"{len(lost)} records are of no row, task or base of the study: {shown}."
