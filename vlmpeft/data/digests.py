"""Hashes of what conversations hold: their identity in records, in splits and in caches."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.data.formats.values import printable
from vlmpeft.data.images import read_bytes
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.shipped import cache_dir


class Digests:
    """SHA-256 of images and conversations by content; paths, ids and places do not count.

    A file is read again only if its size or time has changed since it was hashed last, by whichever run.
    """

    def __init__(self) -> None:
        self._images: dict[Image, bytes | None] = {}
        self._index = _FileIndex(cache_dir() / "digests.sqlite")

    def image(self, image: Image) -> bytes | None:
        """Of the image's bytes; None if they cannot be read."""
        if image not in self._images:
            self._images[image] = self._digest(image)
        return self._images[image]

    def _digest(self, image: Image) -> bytes | None:
        key = self._index.key(image)
        if key and (known := self._index.get(key)):
            return known
        try:
            found = hashlib.sha256(read_bytes(image)).digest()
        except UserError:
            return None
        if key:
            self._index.put(key, found)
        return found

    def images(self, conversation: Conversation) -> tuple[bytes, ...]:
        """Of each readable image, in order."""
        found = (self.image(image) for image in conversation.images)
        return tuple(digest for digest in found if digest)

    def conversation(self, conversation: Conversation) -> bytes:
        """Of roles, texts, images, what is learnt and what is accepted."""
        digest = hashlib.sha256()
        for part in self._parts(conversation.messages):
            digest.update(part)
        return digest.digest()

    def all(self, conversations: Iterable[Conversation]) -> str:
        """Of conversations in order, as hexadecimal: the `sha256` of a record's data."""
        digest = hashlib.sha256()
        for conversation in conversations:
            for part in self._parts(conversation.messages):
                digest.update(part)
        self._index.save()
        return digest.hexdigest()

    def _parts(self, messages: Iterable[Message]) -> Iterable[bytes]:
        for message in messages:
            yield f"{message.role}\0".encode()
            if not message.loss:
                yield b"context\0"
            for part in message.parts:
                yield part.encode() if isinstance(part, str) else self.image(part) or b"unreadable"
            for reference in message.references:
                yield f"\0accepted\0{reference}".encode()


class _FileIndex:
    """(path, byte range, size, time) -> digest, kept in a file that runs share; losing it costs time only."""

    def __init__(self, path: Path):
        self._path, self._new = path, dict[str, bytes]()
        self._known = self._load()

    def _load(self) -> dict[str, bytes]:
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as database:
            return dict(database.execute("SELECT key, digest FROM digests"))
        return {}

    @contextlib.contextmanager
    def _open(self):  # noqa: ANN202
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=10)
        try:
            database.execute(
                "CREATE TABLE IF NOT EXISTS digests (key TEXT PRIMARY KEY, digest BLOB)"
            )
            with database:
                yield database
        finally:
            database.close()

    def key(self, image: Image) -> str | None:
        try:
            path = Path(image.source).absolute()
            state = path.stat()
        except (OSError, ValueError):
            return None
        span = f"{image.offset} {image.size}"
        # SQLite takes no half surrogate pairs, as in file names that are not UTF-8
        return printable(f"{path} {span} {state.st_size} {state.st_mtime_ns}")

    def get(self, key: str) -> bytes | None:
        return self._known.get(key) or self._new.get(key)

    def put(self, key: str, digest: bytes) -> None:
        self._new[key] = digest

    def save(self) -> None:
        """Write what is new; another process may do the same."""
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as database:
            database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?)", self._new.items())
            self._known |= self._new
            self._new = {}
