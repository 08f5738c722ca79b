"""`chat`: a conversation in the terminal, or one question of a script."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from vlmpeft.adapters.adapter import Adapter, Origin
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.cli.config_files import names_of
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.library_messages import quiet_libraries
from vlmpeft.runtime.visible import visible
from vlmpeft.serving.adapter_switch import AdapterSwitch, KeptAdapter, keep_adapters
from vlmpeft.serving.chat import Chat, read_picture
from vlmpeft.serving.terminal import Terminal, in_our_options, note, note_cut
from vlmpeft.strategies.plan import allow_strategies


def talk(settings: SimpleNamespace) -> None:
    """Answer one question, or go on until the user leaves.

    Args:
        settings: the options of the verb (see `verbs.chat`).

    Raises:
        UserError: an adapter that is broken, of another base or of a taken name; with --once also a question
            that cannot be answered.
    """
    with _our_options(), contextlib.redirect_stdout(sys.stderr):
        chat = _load(settings)
        answer = chat.ask(settings.once) if settings.once is not None else None
    if answer is None:
        Terminal(chat).run()
        return
    print(visible(answer.text))  # noqa: T201
    note_cut(answer)


@contextlib.contextmanager
def _our_options() -> Iterator[None]:
    """Errors say what can be given to this verb."""
    try:
        yield
    except UserError as error:
        raise UserError(in_our_options(error)) from error


def _load(settings: SimpleNamespace) -> Chat:
    """What can be wrong is looked at before the base is loaded, which takes minutes for a big one."""
    allow_strategies(names_of(settings.allow_strategy))
    if settings.image is not None:
        read_picture(settings.image)
    named = [_named(text) for text in settings.adapter]
    read = [(name, Adapter.read(folder)) for name, folder in named]
    spec = _base(settings, read[-1][1].manifest.base if read else None)
    base = origin(spec) if read else {}
    adapters = keep_adapters(read, base)
    for adapter in adapters.values():
        _note_bits(adapter, base)
    model, processor, components = load_base(spec, "cuda" if torch.cuda.is_available() else "cpu")
    quiet_libraries()
    chat = Chat(
        AdapterSwitch(model, components, adapters),
        processor,
        chat_template=settings.chat_template,
        max_new_tokens=settings.max_new_tokens,
    )
    chat.use(named[-1][0] if named else None)
    if settings.image is not None:
        chat.show(settings.image)
    return chat


def _named(text: str) -> tuple[str, str]:
    """[NAME=]DIR as (name, folder); of runs/NAME/adapter the name is the run's.

    >>> _named("json=runs/a/adapter"), _named("runs/a/adapter"), _named("tuned/")
    (('json', 'runs/a/adapter'), ('a', 'runs/a/adapter'), ('tuned', 'tuned/'))
    """
    name, mark, folder = text.partition("=")
    if mark and name and folder and "/" not in name and not Path(text).is_dir():
        return name, folder
    path = Path(text).absolute()
    return (path.parent.name if path.name == "adapter" else path.name), text


def _base(settings: SimpleNamespace, trained_on: Origin | None) -> BaseSpec:
    """The base that was given, else the one that the last adapter was trained on."""
    bits = Bits(language=settings.bits)
    if trained_on and settings.base in (None, trained_on.id):
        return BaseSpec(trained_on.id, bits, revision=trained_on.revision)
    return BaseSpec(settings.base or "tiny", bits)


def _note_bits(adapter: KeptAdapter, base: dict[str, Any]) -> None:
    if adapter.same_bits:
        return
    trained, here = adapter.adapter.manifest.base.bits, base["bits"]
    other = [f"{k} {trained.get(k)}, here {here[k]}" for k in here if here[k] != trained.get(k)]
    note(f"adapter {adapter.name} was trained on a base in other bits: {'; '.join(other)}")
