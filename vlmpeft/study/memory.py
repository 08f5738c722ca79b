"""How much memory the rows of a study take, from a few forecasts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vlmpeft.base.spec import BaseSpec
from vlmpeft.preflight.forecast import CHECKPOINTED, PLAIN, Load, blank_of, check_length, forecast
from vlmpeft.study.resolving import Resolved, ResolvedCell

SECONDS = 5.0  # after which no other forecast is begun


@dataclass(frozen=True)
class Peak:
    """Most memory that a run takes at once.

    Args:
        bytes: as `estimate` has them, for conversations of data.max_length tokens; None where a step cannot be rehearsed.
        of: the row that was forecast. Of any other row it is an upper bound.
    """

    bytes: int | None
    of: str


@dataclass(frozen=True)
class _Setting:
    """What a forecast depends on beside the plan."""

    spec: BaseSpec
    device: str
    data: tuple[Any, ...]
    kind: str


def forecast_peaks(
    cells: Iterable[ResolvedCell], seconds: float = SECONDS
) -> dict[tuple[str, str, str], Peak]:
    """(base, task, row) of each legal cell -> its peak.

    Of the rows that train the same components with the same batches only the largest is forecast: others take no more.
    When the time is up, what is left gets the forecast of a row that trains all its components and more.

    Args:
        cells: resolved ones.
        seconds: of forecasting, after which none is begun; one is always made.
    """
    groups: dict[tuple[_Setting, frozenset[str]], list[ResolvedCell]] = {}
    for one in cells:
        if one.resolved and one.size:
            trained = frozenset(name for name, n in one.size.components.items() if n)
            groups.setdefault((_setting(one.resolved), trained), []).append(one)
    ordered = sorted(groups.items(), key=lambda item: -max(map(_trainable, item[1])))
    until, known = time.perf_counter() + seconds, dict[tuple[_Setting, frozenset[str]], Peak]()
    found: dict[tuple[str, str, str], Peak] = {}
    for (setting, trained), members in ordered:
        peak = None if time.perf_counter() < until else _bound(known, setting, trained)
        if peak is None:
            largest = max(members, key=_trainable)
            peak = known[setting, trained] = Peak(_forecast(setting, largest), largest.cell.row)
        found |= dict.fromkeys(map(_key, members), peak)
    return found


def _key(one: ResolvedCell) -> tuple[str, str, str]:
    return one.cell.base, one.cell.task, one.cell.row


def _trainable(one: ResolvedCell) -> int:
    return one.size.trainable if one.size else 0


def _bound(
    known: Mapping[tuple[_Setting, frozenset[str]], Peak],
    setting: _Setting,
    trained: frozenset[str],
) -> Peak | None:
    """A forecast of a row that trains at least these components."""
    return next(
        (peak for (other, more), peak in known.items() if other == setting and trained <= more),
        None,
    )


def _setting(resolved: Resolved) -> _Setting:
    data, config = resolved.config["data"], resolved.config
    about = ("max_pixels", "chat_template", "max_length", "batch_size")
    kind = CHECKPOINTED if config["model"].get("gradient_checkpointing") else PLAIN
    accumulates = (config["trainer"].get("accumulate_grad_batches") or 1) > 1
    values = (*(data.get(key) for key in about), accumulates)
    return _Setting(resolved.base, resolved.device.type, values, kind)


def _forecast(setting: _Setting, one: ResolvedCell) -> int | None:
    assert one.resolved is not None
    pixels, template, tokens, batch, accumulates = setting.data
    blank = blank_of(setting.spec, pixels, template)
    check_length(blank, tokens, "data.max_length")
    load = Load(blank, batch, tokens, tokens - blank.start, accumulates)
    device = torch.device(setting.device)
    made = forecast(setting.spec, one.resolved.plan, load, device, (setting.kind,))
    return made.peak(setting.kind) if setting.kind in made.steps else None
