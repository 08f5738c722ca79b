"""What a study file says, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlmpeft.study.settings import Settings


@dataclass(frozen=True)
class Choice:
    """One value of a variable.

    Args:
        label: what stands for it in names and records.
        value: what settings get.
    """

    label: Any
    value: Any


Variables = Mapping[str, tuple[Choice, ...]]


@dataclass(frozen=True)
class RowPattern:
    """An entry of `rows`, which its variables multiply.

    Args:
        name: with {variables}.
        title: with {variables}; None is the name.
        group: with {variables}.
        settings: dotted key -> value, with {variables}.
        grid: variables of which every combination is taken.
        zip: variables that go together.
        tasks: those it is run on, each with the row's own settings there; None is all.
        seeds: those it is run with; None is the study's.
        search: whether its settings are searched for.
        match: whether its size is matched.
    """

    name: str
    title: str | None = None
    group: str | None = None
    settings: Settings = field(default_factory=dict)
    grid: Variables = field(default_factory=dict)
    zip: Variables = field(default_factory=dict)
    tasks: Mapping[str, Settings] | None = None
    seeds: tuple[int, ...] | None = None
    search: bool = True
    match: bool = True


@dataclass(frozen=True)
class Search:
    """The search for settings that every row gets.

    Args:
        over: learning_rate, learning_rate_factor or a dotted key -> the values tried.
        seeds: of each try.
        steps: optimizer steps of a try; None is as many as of a run.
        on: the split that decides.
    """

    over: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    on: str = "val"


@dataclass(frozen=True)
class Match:
    """Trainable parameters that every row is given.

    Args:
        total: how many.
        tolerance: by what share a row may miss it.
        percent: how many, in percent of the base's parameters, in place of a total.
    """

    total: int = 0
    tolerance: float = 0.02
    percent: float | None = None

    def on(self, parameters: int) -> Match:
        """The same as a total on a base of so many parameters."""
        if self.percent is None:
            return self
        return replace(self, total=round(self.percent / 100 * parameters), percent=None)


@dataclass(frozen=True)
class StudySpec:
    """A study file.

    Args:
        name: of the file, without its ending.
        title: of its tables.
        bases: name -> dotted settings.
        tasks: name -> dotted settings.
        rows: in the order of the file.
        configs: that every run starts from.
        settings: of every run, with {variables}.
        seeds: of every row.
        grid: variables that multiply every row.
        zip: variables that go together and multiply every row.
        full: the row that others are given in percent of.
        reference: the row that others are compared with.
        search: None takes the settings as they are.
        match: None leaves sizes as they are.
        margin: of equivalence, in the metric's units.
        cluster: what of the scored items is not independent.
        skip_illegal: whether a cell that cannot be is a dash instead of an error.
        recommend: whether the best row's settings are written as a config.
        overrides: arguments of the command line that come after those of every cell.
    """

    name: str
    title: str
    bases: Mapping[str, Settings]
    tasks: Mapping[str, Settings]
    rows: tuple[RowPattern, ...]
    configs: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    grid: Variables = field(default_factory=dict)
    zip: Variables = field(default_factory=dict)
    full: str | None = None
    reference: str | None = None
    search: Search | None = None
    match: Match | None = None
    margin: float = 0.01
    cluster: str = "image"
    skip_illegal: bool = False
    recommend: bool = False
    overrides: tuple[str, ...] = ()
