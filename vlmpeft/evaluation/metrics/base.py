"""What a metric is: a score of one answer, and how the scores of a split sum up."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()  # torchmetrics imports torchvision

from torchmetrics import Metric


@dataclass(frozen=True)
class Answer:
    """What a model said to one scored item, and what it should have said.

    Args:
        generated: the greedy answer.
        references: every accepted answer, at least one; the first is the training target.
        finished: False for an answer cut off by the token limit.
        loss: sum of -log p over the training target's tokens, in nats.
        tokens: how many tokens the training target has.
        choices: the answers a multiple-choice item offers.
        choice_log_probabilities: log p of each choice as the answer, summed over its tokens.
        choice_tokens: how many tokens each choice has.
    """

    generated: str
    references: tuple[str, ...]
    finished: bool = True
    loss: float = 0.0
    tokens: int = 0
    choices: tuple[str, ...] = ()
    choice_log_probabilities: tuple[float, ...] = ()
    choice_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.references, f"no reference for the answer {self.generated[:80]!r}"


class TextMetric(Metric):
    """The mean of `score_item` over items; an answer cut off by the token limit scores 0.

    A metric of your own: subclass, give it a `name`, implement `score`, and name the class by its dotted
    path in `model.metrics`. A metric that knows more than one generated and one expected text overrides
    `score_item`; one that is not a mean overrides `update` and `compute`, with states that sum over ranks.
    """

    name: str
    higher_is_better = True
    full_state_update = False
    needs_choices: bool = False
    groups: tuple[str, ...] | None = None  # values of data.group_by that it is for; None is all
    total: Tensor
    count: Tensor
    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments of `__init__`, for `identity`."""
        metric = super().__new__(cls)
        object.__setattr__(
            metric, "_given", (args, kwargs)
        )  # nn.Module has no __init__ behind it yet
        return metric

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def prepare(self, references: Sequence[tuple[str, ...]]) -> None:
        """See the references of all items of a split, once before it is scored; `reset` keeps it."""

    @abstractmethod
    def score(self, generated: str, expected: str) -> float:
        """One answer against one reference; in [0, 1] unless the metric says otherwise."""

    def score_item(self, answer: Answer) -> float:
        """The best score over the references; 0 for an answer that did not come to its end.

        Where lower is better, 0 would reward the cut: there such an answer counts as an empty one.
        """
        if self.higher_is_better:
            return self._best(answer.generated, answer.references) if answer.finished else 0.0
        return self._best(answer.generated if answer.finished else "", answer.references)

    def _best(self, generated: str, references: Sequence[str]) -> float:
        best = max if self.higher_is_better else min
        return best(self.score(generated, reference) for reference in references)

    def update(self, answers: Sequence[Answer]) -> None:
        """Add items."""
        self.total += sum(self.score_item(answer) for answer in answers)
        self.count += len(answers)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The headline, or a dict of suffixes: {"": headline, "rate": x} is reported as name, name/rate."""
        return self.total / self.count.clamp(min=1)

    def identity(self) -> dict[str, Any]:
        """What a score depends on beside the answer and `prepare`: the class and its arguments.

        Plain data. A metric that reads a file gives the file's content instead of its path.
        """
        args, kwargs = self._given
        signature = inspect.signature(self.__init__)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        init_args = dict(bound.arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                init_args |= init_args.pop(name)
        cls = type(self)
        path = f"{cls.__module__}.{cls.__qualname__}"
        groups = {} if self.groups is None else {"groups": list(self.groups)}
        return {"class_path": path, "init_args": init_args} | groups
