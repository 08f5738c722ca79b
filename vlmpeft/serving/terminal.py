"""The loop of a conversation in the terminal: lines, commands, and mistakes that end nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from vlmpeft.runtime.errors import UserError, did_you_mean
from vlmpeft.runtime.visible import visible
from vlmpeft.serving.chat import Answer, Chat

# options of the other verbs, which errors of theirs name -> ours
_OPTIONS = {
    "model.base.path=": "--base ",
    "data.chat_template=": "--chat_template ",
    "model.base.bits.language=": "--bits ",
}


def note(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)  # noqa: T201


def note_cut(answer: Answer) -> None:
    if not answer.is_whole:
        note(f"(cut after {answer.num_tokens} tokens; more: --max_new_tokens N)")


def in_our_options(error: UserError) -> str:
    text = str(error)
    for theirs, ours in _OPTIONS.items():
        text = text.replace(theirs, ours)
    return text


class Terminal:
    """Reads lines, answers them, and takes commands; a mistake is one line and ends nothing."""

    def __init__(self, chat: Chat):
        self.chat = chat
        # command -> (what it takes, what it does, how)
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/adapter": (
                "NAME",
                "answer with this adapter; without NAME: list them",
                self._adapter,
            ),
            "/base": ("", "answer with the base alone", lambda _: self._use(None)),
            "/image": (
                "PATH",
                "show a picture with the next question; without PATH: none",
                self._image,
            ),
            "/reset": ("", "forget the conversation; the picture stays", self._reset),
            "/help": ("", "this list", self._help),
            "/quit": ("", "leave, as Ctrl-D does", self._quit),
        }
        self._goes_on = True

    def run(self) -> None:
        """Talk until /quit or the end of the input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then edits lines and has a history
        self._adapter("")
        note("/help lists the commands")
        while self._goes_on:
            try:
                self._take(input(self._prompt()))
            except UserError as error:
                note(" ".join(in_our_options(error).split()))
            except KeyboardInterrupt:
                note("\nstopped, and not remembered; /quit leaves")
            except EOFError:
                note("end of the input: the conversation ends")
                return

    def _prompt(self) -> str:
        return f"{self._active()}> " if sys.stdin.isatty() and sys.stdout.isatty() else ""

    def _active(self) -> str:
        active = self.chat.switch.active
        return active.name if active else "base"

    def _take(self, line: str) -> None:
        line = line.strip()
        if not line:
            raise UserError("an empty line; ask something, or /help")
        if line.startswith("/"):
            self._command(*line.split(maxsplit=1))
            return
        answer = self.chat.ask(line, _write)
        _write("\n")
        note_cut(answer)

    def _command(self, name: str, argument: str = "") -> None:
        if name not in self.commands:
            raise UserError(f"unknown command {name!r}.{did_you_mean(name, self.commands)}")
        takes, _, act = self.commands[name]
        if argument and not takes:
            raise UserError(f"{name} takes nothing after it, not {argument!r}")
        act(argument.strip())

    def _adapter(self, name: str) -> None:
        if name:
            self._use(name)
            return
        names = ", ".join(self.chat.switch.kept) or "none"
        note(f"{self._active()} answers; adapters: {names}; base: {self._base()}")

    def _base(self) -> str:
        return self.chat.switch.model.name_or_path

    def _use(self, name: str | None) -> None:
        before = self._active()
        try:
            self.chat.use(name)
        except UserError as error:
            if self._active() == before:
                raise
            raise UserError(f"{error}; {self._active()} answers") from error
        note(f"{self._active()} answers")

    def _image(self, path: str) -> None:
        self.chat.show(path or None)
        note(f"{path or 'no picture'} goes with the next question")

    def _reset(self, _: str) -> None:
        self.chat.reset()
        picture = self.chat.picture
        note("forgotten" + (f"; {picture.label} goes with the next question" if picture else ""))

    def _help(self, _: str) -> None:
        for name, (takes, does, _act) in self.commands.items():
            note(f"  {name + ' ' + takes:15} {does}")

    def _quit(self, _: str) -> None:
        self._goes_on = False


def _write(text: str) -> None:
    sys.stdout.write(visible(text))
    sys.stdout.flush()
