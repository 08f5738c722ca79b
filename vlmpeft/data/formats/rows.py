"""Rows of columns (CSV, Parquet, ...) become conversations: which column is what, and how to ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.data.formats.answers import choice_at, json_target, listed
from vlmpeft.data.formats.chat_records import (
    PLACEHOLDER,
    accepted_answers,
    listed_images,
    split_placeholders,
)
from vlmpeft.data.formats.values import (
    as_text,
    check_column,
    fill,
    is_missing,
    is_small,
    kept,
    names,
    printable,
    shown,
    unpacked,
)
from vlmpeft.runtime.errors import UserError

# what a column is called when data.columns does not say
_USUAL = {
    "image": ("image", "images", "image_path", "image_file", "file_name", "photo", "picture"),
    "prompt": ("prompt", "question", "instruction", "query"),
    "answers": (
        "answers",
        "answer",
        "references",
        "response",
        "output",
        "target",
        "caption",
        "label",
    ),
    "system": ("system",),
    "id": ("id", "question_id"),
    "choices": ("choices", "options"),
}


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; null takes the usual names (image, question, answer, ...).

    Args:
        image: column of the picture: path, bytes or data URI, or a list of those; several columns are shown
            in their order.
        prompt: column of the question.
        answers: column of the answer, or of a list of accepted answers.
        system: column of the system prompt.
        id: column that names a row.
        choices: column of the possible answers of a multiple-choice question.
    """

    image: str | list[str] | None = None
    prompt: str | None = None
    answers: str | None = None
    system: str | None = None
    id: str | None = None
    choices: str | None = None

    def __post_init__(self) -> None:
        for role, column in vars(self).items():
            several = role == "image" and isinstance(column, list)
            for name in column if several else [column]:
                if name is not None and not isinstance(name, str):
                    raise UserError(
                        f"data.columns.{role} is the name of a column, not {shown(column)}"
                    )


@dataclass(frozen=True)
class Recipe:
    """How rows become conversations.

    Args:
        columns: which column is what.
        prompt: the question as a template over columns, `Describe {category}.`; over the prompt column.
        target: the answer as a template over columns, or `{json: [brand, colour]}`: a JSON object of these
            columns, or `{json: {field: column}}`; over the answers column.
        choices: possible answers of every row, or null.
    """

    columns: Columns = field(default_factory=Columns)
    prompt: str | None = None
    target: str | Mapping[str, Any] | None = None
    choices: list[str] | None = None

    @property
    def is_given(self) -> bool:
        """Whether anything says how to read rows."""
        return bool(self.columns != Columns() or self.prompt or self.target)

    def conversation(self, row: Mapping[str, Any], place: str, folder: Path) -> Conversation:
        """One row's conversation: system prompt if any, question with the pictures, answer.

        Raises:
            UserError: a column that does not exist, no question, no answer, a bad picture.
        """
        messages = [Message("user", self._question(row, self._images(row, folder)))]
        choices = self._choices(row)
        messages.append(_answer(self._answers(row, choices)))
        if system := self._text(row, "system"):
            messages.insert(0, Message("system", (_without_mark(system, "system prompt"),)))
        name = self._text(row, "id")
        extra = kept({key: value for key, value in row.items() if is_small(value)})
        extra.pop("references", None)  # results have some of their own
        if choices:
            extra["choices"] = choices
        return Conversation(
            printable(name) or Path(place).name, tuple(messages), place, extra, True
        )

    def _column(self, row: Mapping[str, Any], role: str) -> str | None:
        """The column that plays a role, or None."""
        named = getattr(self.columns, role)
        if named is None:
            return next((name for name in _USUAL[role] if name in row), None)
        check_column(row, named, f"data.columns.{role}")
        return named

    def _value(self, row: Mapping[str, Any], role: str) -> Any:
        column = self._column(row, role)
        return None if column is None else row[column]

    def _text(self, row: Mapping[str, Any], role: str) -> str:
        return as_text(self._value(row, role), f"column {shown(self._column(row, role))}")

    def _images(self, row: Mapping[str, Any], folder: Path) -> list[Image]:
        named = self.columns.image
        if not isinstance(named, list):
            found = self._column(row, "image")
            named = [] if found is None else [found]
        for column in named:
            check_column(row, column, "data.columns.image")
        values = [row[column] for column in named if not _is_no_picture(row[column])]
        return [image for value in values for image in listed_images(unpacked(value), folder)]

    def _question(self, row: Mapping[str, Any], waiting: list[Image]) -> tuple[str | Image, ...]:
        if self.prompt is not None:
            text = fill(self.prompt, row, "data.prompt")
        else:
            text = self._text(row, "prompt")
        if not text:
            raise UserError(self._no_question(row))
        if PLACEHOLDER not in text:
            return (*waiting, text)
        parts = split_placeholders(text, waiting)
        if waiting:
            raise UserError(
                f"{len(waiting)} more image(s) given than {PLACEHOLDER} in the question"
            )
        return parts

    def _no_question(self, row: Mapping[str, Any]) -> str:
        if self.prompt is not None or self._column(row, "prompt") is not None:
            return "an empty question"
        return (
            "no 'conversations' and no 'messages', and no question: give data.prompt or "
            f"data.columns.prompt; the columns are {', '.join(names(row))}"
        )

    def _answers(self, row: Mapping[str, Any], choices: list[str] | None) -> list[str]:
        if isinstance(self.target, str):
            given = (fill(self.target, row, "data.target"),)
        elif self.target is not None:
            given = (json_target(self.target, row),)
        else:
            given = accepted_answers(choice_at(listed(self._value(row, "answers")), choices))
        answers = [_without_mark(answer, "answer") for answer in given if answer.strip()]
        if not answers:
            raise UserError(
                "no answer: give data.target or data.columns.answers; the columns are "
                f"{', '.join(names(row))}"
                if self.target is None and self._column(row, "answers") is None
                else "an empty answer"
            )
        return answers

    def _choices(self, row: Mapping[str, Any]) -> list[str] | None:
        if self.choices:
            return self.choices
        value = unpacked(self._value(row, "choices"))
        return [str(choice) for choice in value] if isinstance(value, list) and value else None


def as_choices(choices: Sequence[Any] | None) -> list[str] | None:
    """`data.choices` as texts.

    Raises:
        UserError: YAML has read yes and no as true and false.
    """
    if choices and any(isinstance(choice, bool) for choice in choices):
        raise UserError(
            f"data.choices: {choices} are true and false to YAML; quote them: ['yes', 'no']"
        )
    return [str(choice) for choice in choices] if choices else None


def check_target(target: Any) -> None:
    """Refuse a data.target of another form.

    Raises:
        UserError: neither a text nor {json: ...}.
    """
    if target is None or isinstance(target, str):
        return
    is_json = isinstance(target, Mapping) and set(target) == {"json"}
    wanted = target["json"] if is_json else None
    columns = list(wanted.values()) if isinstance(wanted, Mapping) else wanted
    if isinstance(columns, list) and columns and all(isinstance(c, str) for c in columns):
        return
    raise UserError(
        "data.target is a template such as '{brand}', {json: [column, ...]} or "
        f"{{json: {{key: column}}}}, not {shown(target)}"
    )


def _answer(answers: Sequence[str]) -> Message:
    """The turn that is learnt: VQAv2 trains on the most frequent answer and accepts all."""
    chosen, _ = Counter(answers).most_common(1)[0]
    return Message("assistant", (chosen,), references=tuple(answers) if len(answers) > 1 else ())


def _is_no_picture(value: Any) -> bool:
    empty = isinstance(value, dict) and not any(value.values())  # {bytes: null, path: null}
    return empty or is_missing(value)


def _without_mark(text: str, what: str) -> str:
    if PLACEHOLDER in text:
        raise UserError(f"{what} {shown(text)} holds {PLACEHOLDER}; pictures are in the question")
    return text
