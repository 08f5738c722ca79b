"""One grammar for every verb: its options are the parameters of a typed function, its help the docstring.

jsonargparse reads the types. What it lacks is done here: an option is never shortened, a list takes the words that follow it,
a switch needs no value, and a verb may pass on the keys of a run.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import keyword
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from vlmpeft.cli.config_files import run_arguments, with_found_configs
from vlmpeft.cli.explain import explain
from vlmpeft.cli.known_keys import fields_of
from vlmpeft.runtime.errors import UserError, did_you_mean

RUN_ARGS = "run_args"  # the parameter that takes the keys of a run
_HELP = ("-h", "--help")


@dataclass(frozen=True)
class Verb:
    """A verb, or a command of `data`.

    Args:
        name: as it is typed.
        function: what it does. Its parameters are the options; one called `run_args` takes the keys of a run as they are.
        positional: parameters that are given without their names, in order.
        knobs: dotted path of a dataclass whose fields are options, too; the function gets it as `knobs`.
        check: looks at the options' words before the class of the knobs is imported.
        splits: of a verb that takes the keys of a run, of which splits the data has to be there.
    """

    name: str
    function: Callable[..., None]
    positional: tuple[str, ...] = ()
    knobs: str | None = None
    check: Callable[[dict[str, list[str]]], None] | None = None
    splits: tuple[str, ...] = ()

    @property
    def takes_a_run(self) -> bool:
        return RUN_ARGS in inspect.signature(self.function).parameters

    def options(self) -> dict[str, Any]:
        """Option as typed -> declared type; of knobs as their source says it, since their class is not imported yet."""
        hints = get_type_hints(self.function)
        names = [
            n for n in inspect.signature(self.function).parameters if n not in (RUN_ARGS, "knobs")
        ]
        own = {name.rstrip("_"): hints[name] for name in names}
        return own | (fields_of(self.knobs) if self.knobs else {})

    def call(self, args: Sequence[str]) -> None:
        """Call the function with what a command line says.

        Raises:
            UserError: an unknown option, one without a value, or a value of another type.
        """
        if {*_HELP} & {*args}:
            print(self._parser().format_help(), end="")  # noqa: T201
            return
        given, rest = split_options(self, with_found_configs(list(args)) if self.knobs else args)
        extra: dict[str, Any] = {}
        if self.takes_a_run:
            extra[RUN_ARGS] = run_arguments(rest, self.options(), splits=self.splits)
        with self._told():
            values = self._parser().parse_args(given).as_dict()
            if self.knobs:
                cls = _imported(self.knobs)
                values.pop("config", None)
                extra["knobs"] = cls(**{name: values.pop(name) for name in fields_of(self.knobs)})
        self.function(**{_parameter(name): value for name, value in values.items()}, **extra)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of options name the verb."""
        try:
            yield
        except UserError as error:
            said = str(error)
            raise UserError(
                said if said.startswith(self.name) else f"{self.name}: {said}"
            ) from error

    def _parser(self) -> ArgumentParser:
        about = (inspect.getdoc(self.function) or "").partition("\n\nArgs:")[0]
        parser = VerbParser(prog=f"vlmpeft {self.name}", description=about)
        if self.knobs:
            parser.add_argument("--config", action="config", help="YAML with these keys.")
            parser.add_class_arguments(_imported(self.knobs), as_group=False)
        parser.add_function_arguments(self.function, as_group=False, skip={RUN_ARGS, "knobs"})
        if self.takes_a_run:
            parser.epilog = "Every key of a run is taken as well (--config NAME, --model.base.path, --data.train, ...): see fit --help."
        return parser


class VerbParser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        names = [name for action in self._actions for name in action.option_strings]
        raise UserError(explain(str(message), names).replace("for_:", "for:")) from ex

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Options as they are typed: --for, which Python's grammar calls for_."""
        text = super().format_help(*args, **kwargs)
        return text.replace("--for_ FOR_", "--for ENGINE").replace("--for_", "--for")


def split_options(verb: Verb, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the verb's own options as --name=value, everything else, which is a run's).

    Raises:
        UserError: an option of neither, or one without a value.
    """
    options, rest = verb.options(), list[str]()
    own: dict[str, list[str]] = {}
    waiting, positional = list(args), list(verb.positional)
    while waiting:
        word = waiting.pop(0)
        flag, equals, value = word.removeprefix("--").partition("=")
        if word == "-c":
            word, flag = "--config", "config"
        if not word.startswith("--"):
            if not positional:
                raise UserError(
                    f"{verb.name}: {word!r} belongs to no option; options begin with --"
                )
            own[positional.pop(0)] = [word]
        elif flag.partition(".")[0] in options or (verb.knobs and flag == "config"):
            words = [value] if equals else _take(verb, flag, options.get(flag), waiting)
            own[flag] = (own.get(flag, []) if is_list(options.get(flag)) else []) + words
        elif verb.takes_a_run:
            rest += [word, *([] if equals else _following(waiting))]
        else:
            raise UserError(f"{verb.name}: unknown argument --{flag}.{did_you_mean(flag, options)}")
    if verb.check:
        verb.check(own)
    return [
        f"--{_parameter(f)}={_written(options.get(f), words)}" for f, words in own.items()
    ], rest


def _written(kind: Any, words: list[str]) -> str:
    """A value as jsonargparse reads it: of a list, JSON, unless it was written as one."""
    as_it_is = len(words) == 1 and (not is_list(kind) or words[0].startswith("["))
    return words[0] if as_it_is else json.dumps(words)


def _take(verb: Verb, flag: str, kind: Any, waiting: list[str]) -> list[str]:
    """The words of an option's value, off the front of those that follow it."""
    if kind is bool:
        return [waiting.pop(0) if waiting and waiting[0] in ("true", "false") else "true"]
    words = []
    while waiting and not waiting[0].startswith("--") and (is_list(kind) or not words):
        words.append(waiting.pop(0))
    if not words:
        raise UserError(f"{verb.name}: --{flag} needs a value")
    return words


def _following(waiting: list[str]) -> list[str]:
    return [waiting.pop(0)] if waiting and not waiting[0].startswith("--") else []


def is_list(kind: Any) -> bool:
    """Whether an option of a declared type takes several words."""
    if isinstance(kind, str):
        return kind.startswith("tuple[")
    return any(get_origin(one) in (list, tuple) for one in (kind, *get_args(kind)))


def _parameter(option: str) -> str:
    return f"{option}_" if keyword.iskeyword(option) else option


def _imported(path: str) -> Any:
    import importlib

    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def declare_torchvision() -> None:
    """Make torchvision importable beside a torch without CUDA: transformers and Lightning import it."""
    from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

    declare_torchvision_ops()


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options of a verb's function, by name."""
    return {name: value for name, value in values.items() if name not in (RUN_ARGS, "knobs")}
