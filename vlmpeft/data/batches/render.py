"""Chat templates rendered in a process of their own, so that none can take this one's time or memory."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmpeft.data.batches.turns import Chat, Located
from vlmpeft.data.formats.values import one_line
from vlmpeft.runtime.errors import UserError

_START_SECONDS = 120  # until the process has imported what it needs; a busy machine is slow
_ALARM_SECONDS = 5  # after the limit, the process ends itself, in case this one is gone
_MOST_LATE = 3  # a template that was too slow so often is not tried again
_ENVIRONMENT = ("TZ", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_NEXT = "; give another: data.chat_template=FILE.jinja"


@dataclass(frozen=True)
class Limits:
    """What the rendering of one conversation may take.

    Args:
        seconds: by the clock.
        message_seconds: more of them for every message of the conversation.
        spare_bytes: of memory, beyond what the process has without a template; nothing where the
            system has no such limit (macOS, Windows).
        characters: of the rendered text.
        template_characters: of the template itself.
    """

    seconds: float = 10
    message_seconds: float = 0.002
    spare_bytes: int = 2**30
    characters: int = 2**26
    template_characters: int = 2**20


class Renderer:
    """One process that renders, started when it is needed, and again after it was ended.

    It is safe to use from several threads. A fork has a process of its own.
    """

    def __init__(self, limits: Limits = Limits()):
        self.limits = limits
        self._lock, self._late = threading.Lock(), Counter[str]()
        self._worker: _Worker | None = None
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def start(self) -> None:
        """Start the process, if there is none, without waiting for it."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the process."""
        if self._worker:
            self._worker.end()
        self._worker = None

    def locate(
        self,
        template: str,
        variables: dict[str, str],
        chat: Chat,
        turns: Sequence[int] = (),
        *,
        with_ends: bool = False,
    ) -> Located:
        """A conversation as text, as `processor.apply_chat_template` renders it, and where its answers are.

        Args:
            template: Jinja.
            variables: what the template sees beside the messages: the tokenizer's special tokens.
            chat: messages as templates take them.
            turns: positions of the answers to find, rising.
            with_ends: whether to find the end of every message, too.

        Raises:
            UserError: the template refuses the conversation, breaks off, goes beyond a limit, or renders
                a turn differently once others follow.
        """
        self.check(template)
        if self._late[template] >= _MOST_LATE:
            raise self._refusal("late", chat)
        request = {
            "template": template,
            "variables": variables,
            "chat": chat,
            "turns": turns,
            "with_ends": with_ends,
            "max_characters": self.limits.characters,
            "alarm_seconds": math.ceil(self._seconds(chat)) + _ALARM_SECONDS,
        }
        answer = self._ask(request)
        if refusal := answer.get("refusal"):
            self._late[template] += refusal == "late"
            raise self._refusal(refusal, chat, one_line(str(answer.get("reason"))))
        return Located(answer["text"], [(a, b) for a, b in answer["spans"]], answer["ends"])

    def check(self, template: str) -> None:
        """Refuse a template that is too long to be one.

        Raises:
            UserError: it is.
        """
        if len(template) > self.limits.template_characters:
            raise UserError(
                f"the chat template has {len(template):,} characters, more than "
                f"{self.limits.template_characters:,}{_NEXT}"
            )

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        # text of up to 6 bytes a character as JSON, and two numbers for every place
        chat = request["chat"]
        most = 6 * self.limits.characters + 64 * len(chat) + 2**16
        with self._lock:
            try:
                answer = self._running().ask(request, self._seconds(chat), most)
            except BaseException:
                self.close()  # Ctrl-C in the middle: what it would answer next is not what is asked next
                raise
            if answer.get("refusal") in ("late", "memory", "end"):
                self.close()
            return answer

    def _seconds(self, chat: Chat) -> float:
        return self.limits.seconds + self.limits.message_seconds * len(chat)

    def _running(self) -> _Worker:
        if self._worker is None or not self._worker.is_alive:
            self.close()
            self._worker = _Worker(self.limits.spare_bytes)
        return self._worker

    def _forget(self) -> None:
        """In a fork: the process belongs to the parent."""
        self._lock = threading.Lock()
        if self._worker:
            self._worker.close_pipes()
            self._worker = None

    def _refusal(self, kind: str, chat: Chat, reason: str = "") -> UserError:
        here = "the chat template took more than"
        said = {
            "template": f"the chat template refused it: {reason}",
            "failure": f"the chat template breaks off on this conversation: {reason}{_NEXT}",
            "late": f"{here} {self._seconds(chat):.3g} s on this conversation{_NEXT}",
            "memory": f"{here} {self.limits.spare_bytes / 2**30:g} GiB of memory on this conversation{_NEXT}",
            "long": f"the chat template made more than {self.limits.characters:,} characters of this "
            f"conversation{_NEXT}",
            "end": f"the chat template ended the process that rendered it, of memory or depth{_NEXT}",
            "moving": "the chat template renders a turn differently once others follow, so answers cannot "
            f"be located{_NEXT}",
        }
        return UserError(said[kind])


@functools.cache
def shared_renderer() -> Renderer:
    """The one that everything in this process uses."""
    return Renderer()


class _Worker:
    """A process of `template_worker` and its pipes."""

    def __init__(self, spare_bytes: int):
        self._is_ready, self._guard = False, threading.Lock()
        (transformers_dir,) = importlib.util.find_spec("transformers").submodule_search_locations  # type: ignore[union-attr,misc]
        script = Path(__file__).with_name("template_worker.py")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(script),
                str(spare_bytes),
                transformers_dir,
                *_import_paths(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=script.anchor,
            env={k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
            | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], seconds: float, most_bytes: int) -> dict[str, Any]:
        """What the process answers; a `refusal` too, if it does not within its limits."""
        if not self._is_ready:
            self._wait_until_ready()
        data = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")

        def exchange() -> dict[str, Any]:
            self._send(data)
            return self._receive(most_bytes)

        return self._within(seconds, exchange)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self.close_pipes()

    def close_pipes(self) -> None:
        self._requests.close()
        self._answers.close()
        self._process.returncode = self._process.returncode or 0  # a fork cannot wait for it

    def _wait_until_ready(self) -> None:
        answer = self._within(_START_SECONDS, lambda: self._receive(2**16))
        if answer:
            raise RuntimeError(f"the process that renders chat templates does not start: {answer}")
        self._is_ready = True

    def _within(self, seconds: float, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of an action, which the end of the process ends; that comes after some seconds."""
        done, late = [], []

        def stop() -> None:
            with self._guard:
                if not done:
                    late.append(True)
                    self._process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            return action()
        except (OSError, EOFError):
            return {"refusal": "late" if late else "end"}
        finally:
            with self._guard:
                done.append(True)
            timer.cancel()

    def _send(self, data: bytes) -> None:
        rest = memoryview(len(data).to_bytes(8, "big") + data)
        while rest:
            rest = rest[self._requests.write(rest) :]

    def _receive(self, most_bytes: int) -> dict[str, Any]:
        length = int.from_bytes(self._read(8), "big")
        if length > most_bytes:
            raise EOFError
        return json.loads(self._read(length).decode("utf-8", "surrogatepass"))

    def _read(self, length: int) -> bytes:
        pieces = []
        while length:
            piece = self._answers.read(min(length, 2**20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)


def _import_paths() -> list[str]:
    """Where the process looks for modules: as this one does, but not in the working directory."""
    return [path for path in sys.path if path and Path(path).resolve() != Path.cwd()]
