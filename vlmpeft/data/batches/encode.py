"""From a conversation to tokens and labels: exactly the assistant's turns are supervised."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmpeft.data.batches.marks import MarkedTokenizer, QuestionTokenizer, holds_mark, put_marks
from vlmpeft.data.batches.render import shared_renderer
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.data.formats.values import shown
from vlmpeft.data.images import open_image
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.provenance import semantic_hash, versions
from vlmpeft.runtime.records import read_short
from vlmpeft.runtime.shipped import find_shipped

IGNORE = -100
# processor outputs with one value a token; everything else (pixels, grids) is about pictures
PER_TOKEN = (
    "token_type_ids",
    "mm_token_type_ids",
    "moe_mm_token_type_ids",  # Ernie 4.5 VL: whose experts
    "image_embeds_position_mask",  # Kosmos-2
    "cross_attention_mask",  # Llama 3.2 Vision: (1, T, pictures, tiles) that a token looks at
)


@dataclass(frozen=True)
class Encoded:
    """One conversation, ready to be padded.

    Args:
        input_ids: (T,) with every image token.
        labels: (T,) the ids of the answers and of their end tokens, IGNORE elsewhere.
        turns: (start, end) of each supervised answer in `input_ids`.
        model_inputs: whatever else the processor returned (pixel_values, token_type_ids, ...).
    """

    input_ids: Tensor
    labels: Tensor
    turns: tuple[tuple[int, int], ...]
    model_inputs: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.input_ids)

    def with_answer(self, start: int, end: int, answer: list[int]) -> Encoded:
        """The conversation up to `end` with another answer in [start, end), which alone is supervised.

        Processor outputs with one value a token keep what they say of the prompt, and say of the whole
        answer what they said of the first token of the one it replaces.
        """
        prompt, ids = self.input_ids[:start], torch.tensor(answer, dtype=torch.long)
        labels = torch.cat([torch.full_like(prompt, IGNORE), ids])
        inputs = {
            key: _with_length(value, start, len(answer)) if key in PER_TOKEN else value
            for key, value in self.model_inputs.items()
        }
        return Encoded(torch.cat([prompt, ids]), labels, ((start, start + len(answer)),), inputs)

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for t in (self.input_ids, self.labels, *self.model_inputs.values()))


def _single(value: Tensor) -> Tensor:
    """Pictures in fp32, as towers expect them: Llama 4's processor rounds them to bf16."""
    return value.float() if value.is_floating_point() else value


def _with_length(value: Tensor, start: int, length: int) -> Tensor:
    """Values of the prompt's tokens (1, T, ...), then `length` times that of the answer's first token."""
    first = value[:, start : start + 1]
    return torch.cat([value[:, :start], first.expand(-1, length, *value.shape[2:])], dim=1)


class Encoder:
    """Renders conversations by the chat template and encodes them with the processor.

    Args:
        processor: tokenizer and image processor of the base.
        chat_template: a Jinja template or the path of one, instead of the processor's.
        max_pixels: larger pictures are scaled down to this many pixels; None keeps them.
    """

    def __init__(
        self, processor: Any, chat_template: str | None = None, max_pixels: int | None = None
    ):
        self.processor, self.max_pixels = processor, max_pixels
        limits_itself = max_pixels is not None and _limit_pixels(processor, max_pixels)
        self._open_pixels = None if limits_itself else max_pixels  # scaling twice would round twice
        self.template = read_template(chat_template) or own_template(processor)
        shared_renderer().check(self.template)
        shared_renderer().start()
        self._tokenizer = MarkedTokenizer(processor.tokenizer)
        self._marking = copy.copy(processor)
        self._marking.tokenizer = self._tokenizer
        if hasattr(processor, "qformer_tokenizer"):
            self._marking.qformer_tokenizer = QuestionTokenizer(processor.qformer_tokenizer)
        added = processor.tokenizer.added_tokens_decoder
        self._special = {i for i, token in added.items() if token.special} | set(
            processor.tokenizer.all_special_ids
        )

    @property
    def image_token_id(self) -> int | None:
        """The token a picture's positions are filled with, if the processor says."""
        # a tokenizer that knows is right; Gemma 3's processor means the mark before a picture
        known = getattr(self.processor.tokenizer, "image_token_id", None)
        return known if known is not None else getattr(self.processor, "image_token_id", None)

    @property
    def end_token_ids(self) -> set[int]:
        """Special tokens, one of which has to end every answer."""
        return self._special

    def identity(self) -> str:
        """A hash of everything that decides how a conversation is encoded."""
        image_processor = getattr(self.processor, "image_processor", None)
        return semantic_hash(
            {
                "template": self.template,
                "tokenizer": self.processor.tokenizer.backend_tokenizer.to_str(),
                "processor": type(self.processor).__name__,
                "images": image_processor.to_dict() if image_processor else None,
                "max_pixels": self.max_pixels,
                "versions": versions(),
            }
        )

    def answer_ids(self, conversation: Conversation, turn: int, text: str) -> list[int]:
        """The tokens of `text` as the answer of a turn, end token included; no image is opened."""
        messages = (*conversation.messages[:turn], Message("assistant", (text,)))
        marked = self._marked_text(messages, (turn,))
        (ids,) = self._tokenizer(marked, add_special_tokens=False)["input_ids"]
        ((start, end),) = self._tokenizer.spans
        first, last = self._token_span(ids, start, end)
        return list(ids[first:last])

    def encode(self, conversation: Conversation, only_turn: int | None = None) -> Encoded:
        """Tokens, labels and image inputs of a conversation.

        Args:
            conversation: messages; images are opened here.
            only_turn: position of an assistant message: it alone is supervised and what follows it is
                left out, as scoring needs it. None supervises every assistant turn.

        Raises:
            UserError: an unreadable image, or a template that does not fit.
        """
        messages = conversation.messages[: None if only_turn is None else only_turn + 1]
        turns = conversation.assistant_turns if only_turn is None else (only_turn,)
        return self._encode(messages, self._marked_text(messages, turns))

    def encode_with_ends(self, conversation: Conversation) -> tuple[Encoded, list[int]]:
        """A conversation, and how many tokens there are up to the end of each of its messages.

        Raises:
            UserError: an unreadable image, or a template that does not fit.
        """
        messages, turns = conversation.messages, conversation.assistant_turns
        encoded = self._encode(messages, self._marked_text(messages, turns, with_ends=True))
        offsets, ends = self._tokenizer.offsets, self._tokenizer.message_ends
        ahead = len(encoded) - len(offsets)
        return encoded, [ahead + offsets.ending_by(end) for end in ends]

    def _encode(self, messages: Sequence[Message], marked: str) -> Encoded:
        images = [
            open_image(image, self._open_pixels) for message in messages for image in message.images
        ]
        outputs = self._process(marked, images)
        ids = outputs.pop("input_ids")[0]
        ahead = len(ids) - len(self._tokenizer.offsets)  # BLIP-2 puts the picture before the text
        if ahead > 0 and len(images) > 1:
            raise UserError(
                f"{type(self.processor).__name__} puts one picture before the text, and there are "
                f"{len(images)}: the model would not see the others"
            )
        text_ids = ids[ahead:].tolist()
        found = [self._token_span(text_ids, *span) for span in self._tokenizer.spans]
        spans = [(start + ahead, end + ahead) for start, end in found]
        labels = torch.full_like(ids, IGNORE)
        for start, end in spans:
            labels[start:end] = ids[start:end]
        if outputs.pop("labels", None) is not None and spans and "token_type_ids" in outputs:
            # PaliGemma's processor, which reads type 0 both ways: an answer of it would see itself
            outputs["token_type_ids"][:, spans[0][0] :] = 1
        outputs.pop("attention_mask", None)
        return Encoded(ids, labels, tuple(spans), {k: _single(v) for k, v in outputs.items()})

    def _marked_text(
        self, messages: Sequence[Message], turns: Sequence[int], *, with_ends: bool = False
    ) -> str:
        """The rendered conversation with a mark before and after each of `turns`."""
        if any(holds_mark(message.text) for message in messages):
            raise UserError("the characters U+E0F0 to U+E0F2 are used here and cannot be in a text")
        found = shared_renderer().locate(
            self.template,
            self.processor.tokenizer.special_tokens_map,
            [_as_chat(message) for message in messages],
            turns,
            with_ends=with_ends,
        )
        if holds_mark(found.text):
            raise UserError(
                "the chat template writes one of the characters U+E0F0 to U+E0F2, which are used here; "
                "give another: data.chat_template=FILE.jinja"
            )
        return put_marks(found.text, found.spans, found.ends)

    def _process(self, text: str, images: list[Any]) -> dict[str, Any]:
        try:
            # text is rendered by the template, which writes every special token itself
            outputs = self._marking(
                text=[text], images=images or None, return_tensors="pt", add_special_tokens=False
            )
        except (ValueError, IndexError, TypeError, StopIteration) as error:
            raise UserError(f"the processor refused it: {error}") from error
        return dict(outputs)

    def _token_span(self, ids: Sequence[int], start: int, end: int) -> tuple[int, int]:
        """Tokens that end after `start` and begin before `end`, cut after the answer's end token.

        One that begins before the answer and ends inside it is the answer's. One of blanks alone may be empty: some
        tokenizers trim offsets.
        """
        inside = self._tokenizer.offsets.overlapping(start, end)
        ends = [i for i in inside if ids[i] in self._special]
        if not ends:
            raise UserError(
                "the chat template writes no end token after an answer, so the model would never learn to "
                "stop; give one that does: data.chat_template=FILE.jinja (configs/templates has some)"
            )
        return inside[0], ends[-1] + 1


def _limit_pixels(processor: Any, max_pixels: int) -> bool:
    """Give the limit to an image processor that has one itself (Qwen-VL's kin): it is saved with the adapter.

    Returns whether it has.
    """
    image_processor = getattr(processor, "image_processor", None)
    kwargs = getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {})
    size = getattr(image_processor, "size", None)
    if size is None or not size.get("longest_edge") or "max_pixels" not in kwargs:
        return False
    size["longest_edge"] = min(size["longest_edge"], max_pixels)  # pixels, in spite of its name
    return True


def _as_chat(message: Message) -> dict[str, Any]:
    content = [
        {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part}
        for part in message.parts
    ]
    return {"role": message.role, "content": content}


def read_template(template: str | None) -> str | None:
    """A Jinja template given as text, as a file, or as a name under configs/templates."""
    if template is None or "{" in template:
        return template
    path = (
        Path(template) if Path(template).is_file() else find_shipped(f"templates/{template}.jinja")
    )
    if path is None:
        raise UserError(
            f"chat template {template} is neither a file nor shipped under configs/templates"
        )
    return read_short(path)


def own_template(processor: Any) -> str:
    """The processor's template or its tokenizer's; of several with names, the one named default.

    Raises:
        UserError: there is none.
    """
    own = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    found = own.get("default") if isinstance(own, dict) else own
    if found:
        return found
    named = f" that is named default, but {', '.join(map(shown, own))}" if own else ""
    raise UserError(
        f"the processor has no chat template{named}; give one: data.chat_template=FILE.jinja"
    )
