"""An adapter folder as one value: opened once, checked, and passed on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vlmpeft.adapters.manifest import TEMPLATE, read_manifest
from vlmpeft.adapters.weights import read_tensors, weights_file
from vlmpeft.base.components import PLANNED
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.images import DEFAULT_MAX_PIXELS
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.own_code import refuse_own_code
from vlmpeft.runtime.records import read_short
from vlmpeft.strategies.plan import Plan

_PLAUSIBLE_SIZE = 1024  # of a rank or a number of tokens, whatever the tensors are


@dataclass(frozen=True)
class Origin:
    """Which base an adapter was trained on, as `base.fingerprint.origin` says it.

    Args:
        id: path or hub id.
        revision: of a hub id; None is the newest.
        fingerprint: of the unquantized checkpoint.
        bits: width of each component, and the knobs of 4-bit layers.
    """

    id: str
    revision: str | None
    fingerprint: str
    bits: Mapping[str, Any]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Origin:
        return cls(data["id"], data.get("revision"), data["fingerprint"], data["bits"])

    def to_dict(self) -> dict[str, Any]:
        """The inverse, for a manifest or a report."""
        return asdict(self)

    def spec(self, path: str | None = None) -> BaseSpec:
        """The base in these widths.

        Args:
            path: where the base is now; None is where it was.
        """
        bits = Bits(**{name: self.bits[name] for name in PLANNED})
        knobs = {k: self.bits[k] for k in ("double_quant", "compute") if k in self.bits}
        revision = self.revision if path in (None, self.id) else None
        return BaseSpec(path or self.id, bits, revision=revision, **knobs)


@dataclass(frozen=True)
class Decoding:
    """How an adapter's answers were decoded when they were scored.

    Args:
        max_new_tokens: length limit of an answer, end token included.
        end_ids: tokens that end an answer.
    """

    max_new_tokens: int
    end_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As a manifest has it."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "end_ids": list(self.end_ids),
            "greedy": True,
        }


@dataclass(frozen=True)
class Manifest:
    """What an adapter says of itself.

    Args:
        plan: what was trained.
        base: what it was trained on.
        shapes: tensor's name -> shape.
        decoding: how its answers were scored; None if they were not.
        max_pixels: of a picture in training; None is no limit.
        merge: how it was merged; None if it was trained.
        raw: the file, with all that is not listed here.
    """

    plan: Plan
    base: Origin
    shapes: Mapping[str, tuple[int, ...]]
    decoding: Decoding | None
    max_pixels: int | None
    merge: Mapping[str, Any] | None
    raw: Mapping[str, Any]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Manifest:
        """Build it from a file's content, of which the form was checked.

        Raises:
            UserError: it names what is no strategy, or gives one values it does not take.
        """
        plan, decoding = Plan.from_dict(raw["plan"]), raw.get("decoding")
        shapes = {name: tuple(shape) for name, shape in raw["tensors"].items()}
        _check_sizes(plan, shapes)
        return cls(
            plan,
            Origin.from_dict(raw["base"]),
            shapes,
            Decoding(decoding["max_new_tokens"], tuple(decoding["end_ids"])) if decoding else None,
            raw.get("max_pixels", DEFAULT_MAX_PIXELS),
            raw.get("merge"),
            raw,
        )


def _check_sizes(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a rank, width or number of tokens that no tensor has: it would be allocated for every layer first."""
    sizes = {size for shape in shapes.values() for size in shape}
    for component in PLANNED:
        for strategy in plan.of(component):
            for field in ("r", "init_r", "target_r", "width", "n"):
                size = getattr(strategy, field, None) or 0
                if isinstance(size, int) and size > _PLAUSIBLE_SIZE and size not in sizes:
                    kind = type(strategy).__name__
                    raise UserError(
                        f"{kind} of {component} has {field}={size} and no tensor of that size; copy or train it again"
                    )


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter folder. Its manifest is read at once; everything else on demand and then kept.

    Args:
        folder: where it lies, as it was given: messages name it so.
        manifest: what it says of itself.
    """

    folder: str
    manifest: Manifest

    @classmethod
    def read(cls, folder: str | Path) -> Adapter:
        """Open a folder.

        Raises:
            UserError: no such folder, or a manifest that is none of vlmpeft's.
        """
        raw = read_manifest(folder)
        try:
            return cls(str(folder), Manifest.from_dict(raw))
        except UserError as error:
            raise UserError(f"adapter {folder}: {error}") from error

    @property
    def plan(self) -> Plan:
        return self.manifest.plan

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, on the CPU, by the name PEFT would give it.

        Raises:
            UserError: no weights, broken ones, other tensors than the manifest lists, a NaN or an infinity.
        """
        return read_tensors(self.folder, self.manifest.shapes)

    def forget_tensors(self) -> None:
        """Give their memory back; they are read again on demand."""
        self.__dict__.pop("tensors", None)

    @cached_property
    def processor(self) -> Any:
        """The processor, with the chat template it was trained with.

        Raises:
            UserError: there is none.
        """
        return saved_processor(self.folder)

    @cached_property
    def chat_template(self) -> str | None:
        """The template it was trained with, Jinja; None if the folder has none."""
        path = self.path / TEMPLATE
        return read_short(path) if path.is_file() else None

    def digest(self) -> str:
        """A hash of its weights' file."""
        return hashlib.sha256(weights_file(self.path).read_bytes()).hexdigest()[:16]

    def trained_base(self, path: str | None = None) -> BaseSpec:
        """The base it was trained on, in the widths it was trained on.

        Args:
            path: where the base is now; None is where it was.
        """
        return self.manifest.base.spec(path)

    def check_base(self, base: Mapping[str, Any]) -> str:
        """Compare its base with what `origin` says of the one at hand: "same" or "other bits".

        Raises:
            UserError: another base.
        """
        trained_on = self.manifest.base
        if trained_on.fingerprint != base["fingerprint"]:
            raise UserError(
                f"adapter {self.folder} belongs to base {trained_on.id} (fingerprint {trained_on.fingerprint}), "
                f"not to {base['id']} ({base['fingerprint']}); give model.base.path={trained_on.id}"
            )
        return "same" if trained_on.bits == base["bits"] else "other bits"


def saved_processor(folder: str | Path) -> Any:
    """The processor of an adapter or a checkpoint folder, with the chat template it was trained with.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoProcessor

    refuse_own_code(folder, str(folder))
    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # files from elsewhere: whatever transformers stumbles over
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder}: its processor cannot be loaded: {reason}") from error
