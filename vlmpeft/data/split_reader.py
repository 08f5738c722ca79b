"""The conversations of each split: from its own sources, from the workbench, or dealt out of train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmpeft.data.conversation import Conversation
from vlmpeft.data.digests import Digests
from vlmpeft.data.formats.files import OnError
from vlmpeft.data.formats.rows import Recipe
from vlmpeft.data.formats.sources import Source, as_sources, read_conversations
from vlmpeft.data.split import Split, split_conversations
from vlmpeft.data.template import count_placeholders
from vlmpeft.data.workbench.build import cached_task
from vlmpeft.data.workbench.reference import PREFIX
from vlmpeft.runtime.errors import UserError

SPLITS = ("train", "val", "test", "retention")
Given = (
    float | str | Sequence[str | Mapping[str, Any]] | None
)  # a share of train, a path, several sources


@dataclass(frozen=True)
class Read:
    """What a split holds, before anything is encoded.

    Args:
        conversations: in order.
        weights: how often each comes in an epoch.
        dealt: how it was taken out of train, if it was.
    """

    conversations: list[Conversation]
    weights: list[float]
    dealt: dict[str, Any] | None = None


class SplitReader:
    """Reads splits on demand, each once.

    Args:
        given: split -> what `data.train`, `data.val`, ... say.
        image_dir: what image paths are relative to.
        recipe: how rows of columns become conversations.
        split_by: what is kept together when a split is dealt out of train.
        digests: of images.
        on_error: called with the error of each record that cannot be used.
        allow_outside: whether image paths may lead out of image_dir.
    """

    def __init__(
        self,
        given: dict[str, Given],
        image_dir: str | None,
        recipe: Recipe,
        split_by: str,
        digests: Digests,
        on_error: OnError,
        *,
        allow_outside: bool = True,
    ):
        self.given, self.image_dir, self.recipe = given, image_dir, recipe
        self.split_by, self.digests, self.on_error = split_by, digests, on_error
        self.allow_outside = allow_outside
        self.shares = {s: float(v) for s, v in given.items() if isinstance(v, (int, float))}
        if "train" in self.shares:
            raise UserError(
                f"data.train={given['train']}: it is a file; a share is for val and test"
            )
        self._dealt: dict[str, Read] | None = None

    def has(self, split: str) -> bool:
        """Whether a split was given, read or not."""
        return self.given[split] is not None or (split != "retention" and self._task() is not None)

    def name(self, split: str) -> str:
        """What a split was read from, for messages."""
        return ", ".join(source.path for source in self._sources(split)) or f"data.{split}"

    def read(self, split: str) -> Read:
        """The conversations of a split that was given.

        Raises:
            UserError: anything that cannot be read; a weight where none has an effect.
        """
        if self.shares and (split == "train" or split in self.shares):
            return self._deal()[split]
        return self._read(split)

    def _task(self) -> str | None:
        """The workbench task that train names, which brings val and test with it."""
        train = self.given["train"]
        return train if isinstance(train, str) and train.startswith(PREFIX) else None

    def _sources(self, split: str) -> list[Source]:
        given = self.given[split]
        if given is None and split != "retention":
            given = self._task()
        return [] if isinstance(given, (int, float)) else as_sources(given)

    def _read(self, split: str) -> Read:
        conversations: list[Conversation] = []
        weights: list[float] = []
        for source in self._sources(split):
            if split != "train" and source.weight != 1:
                raise UserError(f"data.{split}: weight {source.weight} has no effect on scores")
            found = self._read_source(source, split)
            conversations += found
            weights += [source.weight] * len(found)
        if waiting := count_placeholders(conversations):
            raise UserError(
                f"data.{split}: {waiting} of {len(conversations)} conversations still hold [ANNOTATE: ...]; "
                "fill them in or remove them"
            )
        return Read(conversations, weights)

    def _read_source(self, source: Source, split: str) -> list[Conversation]:
        if source.path.startswith(PREFIX):
            name = "test" if split == "retention" else split
            path = str(cached_task(source.path) / f"{name}.json")
            return read_conversations(path, None, self.on_error, allow_outside=self.allow_outside)
        return read_conversations(
            source.path,
            source.image_dir or self.image_dir,
            self.on_error,
            source.recipe(self.recipe),
            split,
            allow_outside=self.allow_outside,
        )

    def _deal(self) -> dict[str, Read]:
        """Train and what is taken out of it."""
        if self._dealt is None:
            whole = self._read("train")
            split = split_conversations(
                whole.conversations, self.shares, self.split_by, self.digests
            )
            self._dealt = {name: _part(whole, name, split) for name in split.parts}
        return self._dealt


def _part(whole: Read, name: str, split: Split) -> Read:
    chosen = split.parts[name]
    # how often something is learnt says nothing of how often it is scored
    weights = [whole.weights[i] if name == "train" else 1.0 for i in chosen]
    return Read([whole.conversations[i] for i in chosen], weights, split.to_dict())
