"""Rows of columns (CSV, Parquet, ...) become conversations: which column is what, and how to ask."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmpeft.data.chat import PLACEHOLDER, accepted_answers, listed_images, split_placeholders
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.errors import UserError, did_you_mean

_LONGEST_EXTRA = 200  # characters of a column that an item keeps for grouping

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

    def conversation(self, row: Mapping[str, Any], place: str, folder: Path) -> Conversation:
        """One row's conversation: system prompt if any, question with the pictures, answer.

        Raises:
            UserError: a column that does not exist, no question, no answer, a bad picture.
        """
        waiting = self._images(row, folder)
        messages = [Message("user", self._question(row, waiting))]
        choices = self._choices(row)
        references = self._answers(row, choices)
        if system := _text(self._value(row, "system")):
            messages.insert(0, Message("system", (system,)))
        chosen, _ = Counter(references).most_common(1)[
            0
        ]  # VQAv2 trains on the most frequent answer
        several = references if len(references) > 1 else ()
        messages.append(Message("assistant", (chosen,), references=several))
        extra = {k: v for k, v in row.items() if _is_small(v)}
        if choices:
            extra["choices"] = choices
        name = self._value(row, "id")
        identity = Path(place).name if name is None else str(name)
        return Conversation(identity, tuple(messages), place, extra)

    def _column(self, row: Mapping[str, Any], role: str) -> str | None:
        """The column that plays a role, or None."""
        named = getattr(self.columns, role)
        if named is None:
            return next((name for name in _USUAL[role] if name in row), None)
        _check_column(row, named, f"data.columns.{role}")
        return named

    def _value(self, row: Mapping[str, Any], role: str) -> Any:
        column = self._column(row, role)
        return None if column is None else row[column]

    def _images(self, row: Mapping[str, Any], folder: Path) -> list[Image]:
        named = self.columns.image
        if not isinstance(named, list):
            found = self._column(row, "image")
            named = [] if found is None else [found]
        for column in named:
            _check_column(row, column, "data.columns.image")
        values = [row[column] for column in named if not _is_missing(row[column])]
        return [image for value in values for image in listed_images(_unpacked(value), folder)]

    def _question(self, row: Mapping[str, Any], waiting: list[Image]) -> tuple[str | Image, ...]:
        if self.prompt is not None:
            text = _fill(self.prompt, row, "data.prompt")
        else:
            text = _text(self._value(row, "prompt"))
        if not text:
            raise UserError(
                "no 'conversations' and no 'messages', and no question: give data.prompt or "
                f"data.columns.prompt; the columns are {_names(row)}"
            )
        if PLACEHOLDER not in text:
            return (*waiting, text)
        parts = split_placeholders(text, waiting)
        if waiting:
            raise UserError(
                f"{len(waiting)} more image(s) given than {PLACEHOLDER} in the question"
            )
        return parts

    def _answers(self, row: Mapping[str, Any], choices: list[str] | None) -> tuple[str, ...]:
        if isinstance(self.target, str):
            answers: tuple[str, ...] = (_fill(self.target, row, "data.target"),)
        elif self.target is not None:
            answers = (_json_target(self.target, row),)
        else:
            value = _unpacked(self._value(row, "answers"))
            if choices and isinstance(value, int) and 0 <= value < len(choices):
                value = choices[value]
            answers = accepted_answers(value)
        answers = tuple(answer for answer in answers if answer.strip())
        if not answers:
            raise UserError(
                f"no answer: give data.target or data.columns.answers; the columns are {_names(row)}"
                if self._column(row, "answers") is None
                else "an empty answer"
            )
        return answers

    def _choices(self, row: Mapping[str, Any]) -> list[str] | None:
        if self.choices:
            return self.choices
        value = _unpacked(self._value(row, "choices"))
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
    is_json = isinstance(target, Mapping) and set(target) == {"json"}
    if is_json and isinstance(target["json"], (list, Mapping)) and target["json"]:
        return
    if target is not None and not isinstance(target, str):
        raise UserError(
            f"data.target is a template such as '{{brand}}', or {{json: [column, ...]}}, not {target!r}"
        )


def _json_target(target: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The JSON object of a `{json: ...}` target; an empty cell becomes null."""
    wanted = target["json"]
    pairs = wanted.items() if isinstance(wanted, Mapping) else ((name, name) for name in wanted)
    values = {}
    for key, column in pairs:
        _check_column(row, column, "data.target")
        values[key] = None if _is_missing(row[column]) else row[column]
    return json.dumps(values, ensure_ascii=False, default=str)


def _fill(template: str, row: Mapping[str, Any], key: str) -> str:
    """A template with the row's values in it."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"{key} {template!r}: {error}; a brace itself is written twice") from error
    for name in names:
        _check_column(row, name, key)
    try:
        return template.format_map({name: _text(row[name]) for name in names})
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"{key} {template!r} cannot be filled in: {error}") from error


def _check_column(row: Mapping[str, Any], name: str, key: str) -> None:
    if name not in row:
        raise UserError(
            f"{key}: there is no column {name!r}.{did_you_mean(name, row)} Columns: {_names(row)}"
        )


def _names(row: Iterable[str]) -> str:
    return ", ".join(list(row)[:20])


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or value == [] or value != value  # NaN


def _text(value: Any) -> str:
    return "" if _is_missing(value) else str(value).strip()


def _unpacked(value: Any) -> Any:
    """A list written as JSON in a cell, as a list."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            return value
        return parsed if isinstance(parsed, list) else value
    return value


def _is_small(value: Any) -> bool:
    return isinstance(value, (int, float)) or (
        isinstance(value, str) and len(value) <= _LONGEST_EXTRA and not value.startswith("data:")
    )
