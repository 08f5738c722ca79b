"""The contract of a strategy: one verb, `attach(component) -> Attachment`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

from torch import Tensor, nn

from vlmpeft.base.components import Components
from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.strategies.low_rank import Delta


@dataclass(frozen=True)
class Component:
    """One component of one model, as a strategy sees it. All names are full names in the model."""

    name: str
    model: nn.Module
    components: Components
    base_modules: frozenset[int] | None = (
        None  # id of what was there before any strategy of the plan
    )

    @property
    def roots(self) -> tuple[str, ...]:
        return self.components.roots[self.name]

    @property
    def is_meta(self) -> bool:
        """Whether the model has shapes alone, on the meta device."""
        return next(self.model.parameters()).device.type == "meta"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter of the component; tied ones once."""
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if self.components.component_of(name) == self.name
        }

    def linears(self) -> dict[str, nn.Linear]:
        """Every linear layer of the component that is called as one, quantized ones included.

        Not those that another strategy of the plan has added or wrapped.
        """
        return {
            name: module
            for name, module in self.model.named_modules()
            if is_plain_linear(module)
            and self.components.component_of(name) == self.name
            and not name.endswith(".base_layer")
            and (self.base_modules is None or id(module) in self.base_modules)
        }

    def blocks(self) -> dict[str, nn.Module]:
        """The layers of the component's longest stack, in order; empty if it is no stack of layers."""
        stacks = [
            {f"{name}.{number}": block for number, block in module.named_children()}
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and self.components.component_of(name) == self.name
        ]
        return max(stacks, key=len, default={})

    def width(self, block: nn.Module) -> int | None:
        """Of the tokens between layers: what a layer's own normalisation has a weight for; None if it has none."""
        norms: list[Any] = [m for m in block.children() if "norm" in type(m).__name__.lower()]
        weights = [n.weight for n in norms if getattr(n, "weight", None) is not None]
        return weights[0].shape[-1] if weights else None

    def match_linears(self, targets: tuple[str, ...] | None) -> dict[str, nn.Linear]:
        """The linear layers that `targets` name: last name parts, full paths, or globs of either.

        None means every linear layer but the output head (QLoRA's choice) and gates of a single output.

        Raises:
            UserError: a target that matches nothing in this component; says what the component has.
        """
        linears = self.linears()
        if targets is None:
            head = getattr(self.model, "get_output_embeddings", lambda: None)()
            linears = {
                name: module
                for name, module in linears.items()
                if module is not head and module.out_features > 1
            }
            if not linears:
                raise UserError(f"{self.name} has {self._no_linears()}")
            return linears
        if not targets:
            raise UserError(
                f"targets=[] on {self.name} names no layer; leave targets out for every linear layer, or take Frozen"
            )
        for target in targets:
            if not any(names_module(target, name) for name in linears):
                raise UserError(self._no_match(target, targets, linears))
        return {
            name: m for name, m in linears.items() if any(names_module(t, name) for t in targets)
        }

    def _no_linears(self) -> str:
        if any(
            name.endswith(".base_layer") and self.components.component_of(name) == self.name
            for name, _ in self.model.named_modules()
        ):
            return "no linear layer left to adapt: strategies before this one in the list have them all"
        return "no linear layer to adapt"

    def _no_match(
        self, target: str, targets: tuple[str, ...], linears: dict[str, nn.Linear]
    ) -> str:
        leaves = dict.fromkeys(name.rsplit(".", 1)[-1] for name in linears)
        elsewhere = [
            self.components.component_of(name)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and names_module(target, name)
        ]
        where = f" ({target} is in {elsewhere[0]})" if elsewhere else did_you_mean(target, leaves)
        if self.name in elsewhere:
            where = f" ({target} is no plain linear layer: an adapter there fails or does nothing)"
        return f"no linear matched {target!r} of targets={targets} in {self.name}; it has {', '.join(leaves)}.{where}"


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether an adapter around the module's forward does what is expected of one around a linear layer.

    Not around a subclass's: Llama 4's router returns two tensors; of `nn.MultiheadAttention.out_proj` only the
    weight is read.
    """
    return type(module) is nn.Linear or (
        isinstance(module, nn.Linear) and type(module).__module__.startswith("bitsandbytes.")
    )


def names_module(target: str, name: str) -> bool:
    """Whether a target (last name part, full path or glob of either) means a module."""
    return name == target or name.endswith("." + target) or fnmatchcase(name, target)


@dataclass(frozen=True)
class PeftPart:
    """How plain PEFT would express an attachment: LoRA settings per target, modules saved whole."""

    lora: dict[str, dict[str, Any]] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()


def _nothing(_: Any) -> None:
    """A hook that does nothing."""


@dataclass(frozen=True)
class StepHooks:
    """What a strategy does around optimizer steps, beside having parameters.

    Args:
        penalty: added to the loss per supervised token, e.g. a regulariser of the strategy's own.
        schedule: called with the number of optimizer steps there will be, before the first.
        after_step: called with the number of optimizer steps done, gradients still there.
        state: what an exact resume needs beside the trainable tensors, as plain data and tensors.
        load_state: its inverse.
    """

    penalty: Callable[[], Tensor] | None = None
    schedule: Callable[[int], None] = _nothing
    after_step: Callable[[int], None] = _nothing
    state: Callable[[], dict[str, Any]] = dict
    load_state: Callable[[dict[str, Any]], None] = _nothing


NO_HOOKS = StepHooks()


@dataclass(frozen=True)
class Attachment:
    """What a strategy left on one component.

    Args:
        component: the component's name.
        strategy: the strategy that was attached.
        targets: full names of the modules it works on.
        trainable: full names, in the model as it is now, of the parameters to be trained.
        added: how many parameters the base did not have.
        detach: puts the model back exactly as it was.
        deltas: (base parameter's name, dW in fp32) of what merging it into the base would add, as it is now; None if
            it is no change of weights (prompts, a bottleneck's nonlinearity).
        peft: how plain PEFT would carry it; None if it cannot.
        rate_factors: parameter -> what its learning rate is multiplied by.
        hooks: what the strategy does around optimizer steps.
    """

    component: str
    strategy: Strategy
    targets: tuple[str, ...] = ()
    trainable: tuple[str, ...] = ()
    added: int = 0
    detach: Callable[[], None] = lambda: None
    deltas: Callable[[], Iterator[tuple[str, Delta]]] | None = None
    peft: PeftPart | None = None
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    hooks: StepHooks = NO_HOOKS


class Strategy(ABC):
    """What is done to one component. Subclasses are frozen dataclasses: config and behaviour at once.

    A subclass may have a `learning_rate`. One that trains nothing and changes what the component is says `trains = False`:
    it stays where a plan is scored without an adapter. This class is no dataclass on purpose: jsonargparse accepts
    subclasses by `class_path` only where the declared type is not one.
    """

    # not annotated: beside a ClassVar jsonargparse leaves lists where a field says tuple
    trains = True

    @abstractmethod
    def attach(self, component: Component) -> Attachment:
        """Change the component so that it can be trained, and say what was changed."""
