"""What names a task: `workbench:style@0.5,n=400` is `style` at half its shift with 400 training conversations."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vlmpeft.data.workbench.tasks import FULL_SHIFT, SHIFTED, TASKS, Task
from vlmpeft.runtime.errors import UserError, did_you_mean

PREFIX = "workbench:"
MOST_TRAIN = 100_000  # 400 MB of pictures


@dataclass(frozen=True)
class Reference:
    """A task, the size of its shift, and how much of it there is to learn from.

    Args:
        task: one of TASKS.
        shift: 0 is as near to the source task as the task goes, 1 is the task as it is meant.
        train: conversations of the training split; None is the task's own number. The first ones are
            always the same, and val and test do not change.
    """

    task: str
    shift: float = FULL_SHIFT
    train: int | None = None

    @property
    def name(self) -> str:
        """The shortest text that says the same, without the prefix."""
        shift = "" if self.shift == FULL_SHIFT else f"@{self.shift!r}"
        return self.task + shift + (f",n={self.train}" if self.train else "")

    def resolve(self) -> Task:
        """The task that is meant."""
        own = self.shift == FULL_SHIFT
        task = TASKS[self.task] if own else SHIFTED[self.task](self.shift)
        return replace(task, train=self.train) if self.train else task


def read_reference(text: str) -> Reference:
    """`[workbench:]TASK[@SHIFT][,n=TRAIN]`.

    Raises:
        UserError: an unknown task, a shift that is no number from 0 to 1 or that the task does not have, a
            number of conversations that is not from 1 to 100,000, or anything else behind the name.

    >>> read_reference("workbench:style@0.50,n=400").name
    'style@0.5,n=400'
    """
    name, *options = text.removeprefix(PREFIX).split(",")
    task, at, shift = name.partition("@")
    if task not in TASKS:
        raise UserError(f"unknown workbench task {task!r}.{did_you_mean(task, TASKS)}")
    size = _read_shift(text, task, shift) if at else FULL_SHIFT
    train = _read_train(text, options) if options else None
    return Reference(task, size, None if train == TASKS[task].train else train)


def _read_shift(text: str, task: str, shift: str) -> float:
    if task not in SHIFTED:
        raise UserError(f"{text}: {task} has no shift to set; {', '.join(SHIFTED)} have")
    # digits alone: float() also reads nan, 1e-3 and 0_1
    if not re.fullmatch(r"\d*\.?\d+", shift) or not 0 <= float(shift) <= 1:
        raise UserError(f"{text}: the shift {shift!r} is not a number from 0 to 1")
    return float(shift)


def _read_train(text: str, options: list[str]) -> int:
    key, _, number = options[0].partition("=")
    if key != "n" or len(options) > 1:
        raise UserError(f"{text}: behind the task may stand n=TRAIN and nothing else")
    if not re.fullmatch(r"[0-9]{1,6}", number) or not 1 <= int(number) <= MOST_TRAIN:
        raise UserError(f"{text}: n={number} is not a whole number from 1 to {MOST_TRAIN:,}")
    return int(number)
