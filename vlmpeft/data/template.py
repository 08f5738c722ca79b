"""An annotation file for a folder of pictures, to be filled in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image as Pillow

from vlmpeft.data.conversation import Conversation, Image
from vlmpeft.data.images import NotAPictureError, open_image
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import write_atomically

PLACEHOLDER = "[ANNOTATE:"
MARK = "<image>"
# question -> what its answer should be
QUESTIONS = {
    "Describe this picture.": "what is shown, in one to three sentences",
    "Which objects are in this picture?": "their names, separated by commas",
    "What stands out in this picture?": "colour, state, defect or place that sets it apart",
}
HINT = "the answer"
# enough to be sure that a picture can be decoded, and quick for a JPEG
_PROBE_PIXELS = 64 * 64


@dataclass(frozen=True)
class TemplateCount:
    """What `write_template` found and did.

    Args:
        pictures: files that are readable pictures.
        added: records that are new.
        kept: records that were there before.
        waiting: answers that hold PLACEHOLDER, old and new.
        skipped: hidden files and files that are no pictures.
        unreadable: why each broken or foreign picture cannot be used.
    """

    pictures: int
    added: int
    kept: int
    waiting: int
    skipped: int
    unreadable: list[str]


def count_placeholders(conversations: Sequence[Conversation]) -> int:
    """How many of the assistant's messages still hold PLACEHOLDER."""
    return sum(
        message.role == "assistant" and PLACEHOLDER in message.text
        for conversation in conversations
        for message in conversation.messages
    )


def write_template(image_dir: Path, out: Path, questions: Sequence[str]) -> TemplateCount:
    """Write one LLaVA record for each picture below a folder and each question.

    What `out` holds is kept as it is; a question is not asked again about a picture.

    Raises:
        UserError: no folder, no picture in it, no usable question; `out` is not a JSON list or
            cannot be written.
    """
    asked = _check_questions(questions)
    kept = _read_records(out)
    pictures, skipped, unreadable = _find_pictures(image_dir)
    if not pictures:
        why = f"; the first that cannot be read: {unreadable[0]}" if unreadable else ""
        raise UserError(f"no readable picture below {image_dir}{why}")
    added = list(_missing_records(pictures, asked, kept, image_dir))
    if added:
        text = json.dumps([*kept, *added], indent=2, ensure_ascii=False) + "\n"
        # half of a surrogate pair, as in a file name that is not UTF-8, is written as its escape
        write_atomically(out, text.encode("utf-8", "backslashreplace"))
    waiting = sum(map(_count_waiting, [*kept, *added]))
    return TemplateCount(len(pictures), len(added), len(kept), waiting, skipped, unreadable)


def _check_questions(questions: Sequence[str]) -> list[str]:
    """Without repeats and spaces around."""
    asked = list(dict.fromkeys(question.strip() for question in questions))
    if not asked or "" in asked:
        raise UserError("a question is empty; leave --question out for the default ones")
    marked = [question for question in asked if MARK in question]
    if marked:
        raise UserError(f"question {marked[0]!r} holds {MARK}, which is added to each question")
    return asked


def _read_records(out: Path) -> list[Any]:
    if out.suffix != ".json":
        raise UserError(f"--out {out}: a list of records is a .json file")
    try:
        records = json.loads(out.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{out} cannot be read as JSON, so it is left alone: {error}") from error
    if not isinstance(records, list):
        raise UserError(
            f"{out} exists and holds a {type(records).__name__}, not a list of records, so it is "
            "left alone"
        )
    return records


def _find_pictures(image_dir: Path) -> tuple[list[str], int, list[str]]:
    """Paths below the folder of readable pictures, number of files passed over, reasons."""
    if not image_dir.is_dir():
        raise UserError(f"image_dir {image_dir} is not a folder that exists")
    suffixes = Pillow.registered_extensions()
    pictures, skipped, unreadable = [], 0, []
    for path in sorted(path for path in image_dir.rglob("*") if path.is_file()):
        relative = path.relative_to(image_dir)
        if any(part.startswith(".") for part in relative.parts):
            skipped += 1
            continue
        try:
            open_image(Image(str(path)), max_pixels=_PROBE_PIXELS)
            pictures.append(relative.as_posix())
        except NotAPictureError as error:
            if path.suffix.lower() in suffixes:
                unreadable.append(str(error))
            else:
                skipped += 1
        except UserError as error:
            unreadable.append(str(error))
    return pictures, skipped, unreadable


def _missing_records(
    pictures: Sequence[str], questions: Sequence[str], kept: Sequence[Any], image_dir: Path
) -> Iterator[dict[str, Any]]:
    known = {pair for record in kept for pair in _pairs(record, image_dir)}
    taken = {str(record.get("id")) for record in kept if isinstance(record, dict)}
    for picture in pictures:
        for question in questions:
            if (picture, question) in known:
                continue
            name = _free_name(picture, taken)
            taken.add(name)
            yield _record(name, picture, question)


def _free_name(picture: str, taken: set[str]) -> str:
    """The first `<path without suffix>#<n>` that is free: a.png and a.jpg share their beginning."""
    stem, number = PurePosixPath(picture).with_suffix(""), 1
    while f"{stem}#{number}" in taken:
        number += 1
    return f"{stem}#{number}"


def _record(name: str, picture: str, question: str) -> dict[str, Any]:
    answer = f"{PLACEHOLDER} {QUESTIONS.get(question, HINT)}]"
    turns = [
        {"from": "human", "value": f"{MARK}\n{question}"},
        {"from": "gpt", "value": answer},
    ]
    return {"id": name, "image": picture, "conversations": turns}


def _pairs(record: Any, image_dir: Path) -> Iterator[tuple[str, str]]:
    """(picture, question) for each that a record of any origin has."""
    if not isinstance(record, dict):
        return
    images = record.get("image") or record.get("images")
    for image in images if isinstance(images, list) else [images]:
        for turn in _turns(record, ("human", "user")):
            text = turn.get("value", turn.get("content"))
            if isinstance(image, str) and isinstance(text, str):
                yield _relative(image, image_dir), text.replace(MARK, "").strip()


def _relative(image: str, image_dir: Path) -> str:
    path = Path(image.removeprefix("file://"))
    base = image_dir.absolute()
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _turns(record: dict[str, Any], speakers: tuple[str, ...]) -> list[dict[str, Any]]:
    turns = record.get("conversations") or record.get("messages")
    dicts = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    return [turn for turn in dicts if turn.get("from", turn.get("role")) in speakers]


def _count_waiting(record: Any) -> int:
    if not isinstance(record, dict):
        return 0
    return sum(PLACEHOLDER in json.dumps(turn) for turn in _turns(record, ("gpt", "assistant")))
