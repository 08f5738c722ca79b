"""A conversation over pictures with a base and its adapters, each talked to as it was trained."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlmpeft.base.loading import autocast
from vlmpeft.data.batches.dataset import Item
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.data.formats.chat_records import PLACEHOLDER, split_placeholders
from vlmpeft.data.images import DEFAULT_MAX_PIXELS, open_image, read_bytes
from vlmpeft.evaluation.decoding import (
    AnswerEnds,
    Limits,
    WholePrompts,
    find_end_ids,
    find_pad_id,
    limits_of,
)
from vlmpeft.evaluation.tower_cache import Sample
from vlmpeft.runtime.errors import UserError
from vlmpeft.serving.adapter_switch import AdapterSwitch, KeptAdapter
from vlmpeft.serving.streaming import Stream

MAX_NEW_TOKENS = 256  # where no training answer says how long answers are
_UNSAID = "answer"  # stands where the model's answer will: a prompt is what is before it


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Args:
        text: without special tokens and outer white space.
        is_whole: whether it ended by itself, not by the token limit.
        num_tokens: its length, end token included.
    """

    text: str
    is_whole: bool
    num_tokens: int


@dataclass(frozen=True)
class Manner:
    """How a model is talked to.

    Args:
        encoder: its chat template and picture size.
        limits: when its answers end.
    """

    encoder: Encoder
    limits: Limits


def read_picture(path: str | Path) -> Image:
    """A picture in memory: what is talked about does not change with its file.

    Raises:
        UserError: no such file, or no picture.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"image {path} does not exist; paths are relative to {Path.cwd()}")
    picture = Image(str(found), name=str(path))
    open_image(picture, DEFAULT_MAX_PIXELS)
    encoded = base64.b64encode(read_bytes(picture)).decode()
    return replace(picture, source=f"data:image/*;base64,{encoded}")


class Chat:
    """Asks and remembers.

    Args:
        switch: the base and its adapters.
        processor: of the base.
        chat_template: of the base and of adapters that have none of their own; default: the base's.
        max_new_tokens: length limit of an answer; default: what an adapter was scored with.
    """

    def __init__(
        self,
        switch: AdapterSwitch,
        processor: Any,
        *,
        chat_template: str | None = None,
        max_new_tokens: int | None = None,
    ):
        self.switch, self.processor = switch, processor
        self.chat_template, self.max_new_tokens = chat_template, max_new_tokens
        self.history: tuple[Message, ...] = ()
        self.picture: Image | None = None
        self._is_shown = True
        self._manners: dict[str | None, Manner] = {}

    def use(self, name: str | None) -> None:
        """Go on with an adapter, None the base; the history stays.

        Raises:
            UserError: an unknown name or a template that no answer can be told from, which change
                nothing; tensors that do not fit, after which the base is active.
        """
        self.switch.find(name)
        self.manner(name)
        self.switch.use(name)

    def manner(self, name: str | None) -> Manner:
        """How an adapter, None the base, is talked to."""
        if name not in self._manners:
            self._manners[name] = self._find_manner(self.switch.find(name))
        return self._manners[name]

    def _find_manner(self, kept: KeptAdapter | None) -> Manner:
        manifest = kept.adapter.manifest if kept else None
        template = kept.adapter.chat_template if kept else None
        max_pixels = manifest.max_pixels if manifest else DEFAULT_MAX_PIXELS
        # the encoder may write max_pixels into the image processor, which adapters share
        processor = copy.copy(self.processor)
        if hasattr(processor, "image_processor"):
            processor.image_processor = copy.deepcopy(processor.image_processor)
        encoder = Encoder(processor, template or self.chat_template, max_pixels)
        return Manner(encoder, self._limits(encoder, manifest.decoding if manifest else None))

    def _limits(self, encoder: Encoder, decoding: AnswerEnds | None) -> Limits:
        tokenizer = encoder.processor.tokenizer
        if decoding:
            limits = limits_of(decoding, tokenizer)
        else:
            asked = _unanswered((Message("user", ("question",)),))
            last = encoder.answer_ids(asked, 1, _UNSAID)[-1]
            ends = tuple(find_end_ids(self.switch.model, tokenizer, [last]))
            limits = Limits(MAX_NEW_TOKENS, ends, find_pad_id(tokenizer))
        return replace(limits, max_new_tokens=self.max_new_tokens or limits.max_new_tokens)

    # -- what is shown and forgotten -----------------------------------------------------------

    def show(self, path: str | Path | None) -> None:
        """Show a picture with the next question; None takes the one that waits away.

        Raises:
            UserError: no such file, or no picture.
        """
        if path is None:
            self.picture, self._is_shown = None, True
            return
        self.picture, self._is_shown = read_picture(path), False

    def reset(self) -> None:
        """Forget what was said; the last picture is shown again with the next question."""
        self.history, self._is_shown = (), self.picture is None

    # -- asking --------------------------------------------------------------------------------

    def ask(self, question: str, show: Callable[[str], None] = lambda text: None) -> Answer:
        """Answer a question, greedily, and remember both.

        Args:
            question: `<image>` in it is where the waiting picture stands; else that is before it.
            show: is given the answer's text piece by piece as it comes.

        Raises:
            UserError: an empty question, or a conversation that the model cannot take; nothing is remembered.
        """
        asked = self._asked(question)
        manner = self._manner_now()
        sample = self._sample((*self.history, asked))
        limits = self._within_context(manner.limits, prompt_tokens=sample[1].turns[0][0])
        ids = self._generate(sample, limits, stream := Stream(self.processor.tokenizer, show))
        text = stream.finish(ids)
        self.history = (*self.history, asked, Message("assistant", (text,)))
        self._is_shown = True
        return Answer(text, bool(ids) and ids[-1] in limits.end_ids, len(ids))

    def prompt(self, question: str) -> Sample:
        """What `ask` would give the model: the conversation up to an answer, which is not read."""
        return self._sample((*self.history, self._asked(question)))

    def _manner_now(self) -> Manner:
        return self.manner(self.switch.active.name if self.switch.active else None)

    def _asked(self, question: str) -> Message:
        mark = getattr(self.processor, "image_token", None)
        if not question.strip():
            raise UserError("an empty question")
        if mark and mark != PLACEHOLDER and mark in question:
            raise UserError(f"{mark!r} is this model's own mark of a picture; write {PLACEHOLDER}")
        waiting = [] if self._is_shown or self.picture is None else [self.picture]
        if PLACEHOLDER in question:
            return Message("user", split_placeholders(question, waiting))
        return Message("user", (*waiting, question))

    def _sample(self, messages: tuple[Message, ...]) -> Sample:
        """Through the encoder that training and scoring use."""
        conversation = _unanswered(messages)
        encoded = self._manner_now().encoder.encode(conversation, len(messages))
        return Item("chat", conversation, len(messages)), encoded

    def _within_context(self, limits: Limits, prompt_tokens: int) -> Limits:
        text = self.switch.model.config.get_text_config()
        most = getattr(text, "max_position_embeddings", None)
        if most is None:
            return limits
        if prompt_tokens >= most:
            raise UserError(
                f"the conversation has {prompt_tokens} tokens and the model can read {most}; begin anew: /reset"
            )
        return replace(limits, max_new_tokens=min(limits.max_new_tokens, most - prompt_tokens))

    @torch.no_grad()
    def _generate(self, sample: Sample, limits: Limits, stream: Stream) -> list[int]:
        model = self.switch.model
        try:
            with autocast(model):
                return WholePrompts(model, limits).generate([sample], streamer=stream)[0]
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"no memory for a conversation of {len(sample[1])} tokens; begin anew (/reset), or --bits nf4"
            ) from error


def _unanswered(messages: tuple[Message, ...]) -> Conversation:
    return Conversation("chat", (*messages, Message("assistant", (_UNSAID,))))
