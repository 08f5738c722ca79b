"""What rows differ in: the variables of a grid, or what their records say of their plans."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlmpeft.study.report.plots.view import RowRuns, is_number
from vlmpeft.study.report.run import Run
from vlmpeft.study.report.settings import flat, split_common, written

COMPONENT = ("component", "components")
METHOD = ("method", "strategy", "strategies")
RANK = ("r", "rank")
FOLLOW_RANK = (*RANK, "alpha", "learning_rate")  # a learning rate that was searched may be any
FOLLOW_SIZE = ("learning_rate",)


def name_of(variable: str) -> str:
    """The last part of a dotted key."""
    return variable.rpartition(".")[2]


def components_trained(run: Run) -> str:
    """The components that a run trains, `vision+projector`; empty if none."""
    return "+".join(_trained(run))


def methods_used(run: Run) -> str:
    """The strategies that train something, each once, `LoRA+Full`; empty if none."""
    names = [
        str(strategy.get("name"))
        for component in _trained(run).values()
        for strategy in component.get("strategies") or ()
        if strategy.get("trainable")
    ]
    return "+".join(dict.fromkeys(names))


def _trained(run: Run) -> Mapping[str, Any]:
    components = run.record.get("components") or {}
    return {name: c for name, c in components.items() if c.get("trainable")}


def rank_of(one: RowRuns) -> float | None:
    """The rank of a row: its variable, else the one rank that its plan has."""
    for variable, value in one.row.variables.items():
        if name_of(variable) in RANK and is_number(value):
            return float(value)
    ranks = {v for k, v in plan_of(one).items() if name_of(k) in RANK and is_number(v)}
    return float(ranks.pop()) if len(ranks) == 1 else None


def data_size_of(one: RowRuns) -> float | None:
    """Conversations that the row was trained on, as its records say."""
    sizes = {
        (run.record.get("data") or {}).get("train", {}).get("conversations") for run in one.runs
    }
    known = [float(size) for size in sizes if is_number(size)]
    return known[0] if len(known) == len(sizes) == 1 else None


def plan_of(one: RowRuns) -> dict[str, Any]:
    """The plan of a row's first record, as dotted keys."""
    return flat((_config(one).get("model") or {}).get("plan") or {})


def lines_over(
    rows: Sequence[RowRuns], x_of: Callable[[RowRuns], float | None], following: Sequence[str]
) -> dict[str, list[tuple[float, RowRuns]]]:
    """Rows that differ in one number only, as lines: label -> (number, row), by number.

    Their records say what else they differ in. A number that follows the one, as alpha may follow r, makes no line of its own.
    Beside a line of several rows there may be lines of one; without any there is nothing.

    Args:
        rows: some.
        x_of: the number; None leaves a row out.
        following: last parts of keys that go with the number, whatever their values.
    """
    placed = [(x, one) for one in rows if (x := x_of(one)) is not None]
    settings = [_settings(one) for _, one in placed]
    lines = _lines(placed, settings, following)
    if not all(map(_is_clear, lines.values())):  # a variable that no setting of the model shows
        both = [
            own | dict(one.row.variables) for own, (_, one) in zip(settings, placed, strict=True)
        ]
        lines = _lines(placed, both, following)
    clear = {name: line for name, line in lines.items() if _is_clear(line)}
    return _by_variables(clear) if any(len(line) > 1 for line in clear.values()) else {}


def _lines(
    placed: Sequence[tuple[float, RowRuns]],
    settings: Sequence[Mapping[str, Any]],
    following: Sequence[str],
) -> dict[str, list[tuple[float, RowRuns]]]:
    """Rows of the same settings, by number; numbers that follow the one are no settings."""
    keys = [
        key
        for key in dict.fromkeys(key for own in settings for key in own)
        if name_of(key) not in following
        and not _follows([x for x, _ in placed], [own.get(key) for own in settings])
    ]
    _, differences = split_common([{k: own[k] for k in keys if k in own} for own in settings])
    lines: dict[str, list[tuple[float, RowRuns]]] = defaultdict(list)
    for pair, rest in zip(placed, differences, strict=True):
        lines[_named(rest)].append(pair)
    return {name: sorted(line, key=lambda pair: pair[0]) for name, line in lines.items()}


def _is_clear(line: Sequence[tuple[float, RowRuns]]) -> bool:
    """Whether no two rows of a line have one number."""
    return len({x for x, _ in line}) == len(line)


def _config(one: RowRuns) -> Mapping[str, Any]:
    return one.runs[0].record.get("config") or {}


def _settings(one: RowRuns) -> dict[str, Any]:
    """What makes a row what it is beside its number: settings of its first record, else the study's variables."""
    config = _config(one)
    trainer, data = config.get("trainer") or {}, config.get("data") or {}
    settings = flat(config.get("model") or {}) or dict(one.row.variables)
    settings |= {key: trainer.get(key) for key in ("max_steps", "max_epochs")}
    return settings | {"batch_size": data.get("batch_size")}


def _follows(numbers: Sequence[float], values: Sequence[Any]) -> bool:
    """Whether values are numbers, one for each number, and not the same for all."""
    if not all(map(is_number, values)):
        return False
    return len({*zip(numbers, values, strict=True)}) == len({*numbers}) and len({*values}) > 1


def _named(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name_of(key)}={written(value)}" for key, value in settings.items())


def _by_variables(
    lines: Mapping[str, list[tuple[float, RowRuns]]],
) -> dict[str, list[tuple[float, RowRuns]]]:
    """The lines by the study's own labels, where those tell them apart."""
    names = [_named(_shared_variables(line)) for line in lines.values()]
    if len({*names}) < len(names):
        return dict(lines)
    every = [_shared_variables(line) for line in lines.values()]
    _, apart = split_common(every)
    return {_named(one): line for one, line in zip(apart, lines.values(), strict=True)}


def _shared_variables(line: Sequence[tuple[float, RowRuns]]) -> dict[str, Any]:
    """Variables that have one value along a line."""
    return split_common([one.row.variables for _, one in line])[0]
