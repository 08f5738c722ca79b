"""What a family can do here, found out by doing it; a check that fails says why in its error."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from vlmpeft.adapters.loading import load_adapter
from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.dataset import Item
from vlmpeft.data.batches.encode import IGNORE, Encoder
from vlmpeft.data.conversation import Conversation, Image, Message
from vlmpeft.evaluation.decoding import Limits, WholePrompts
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.strategies import Full, LoRA
from vlmpeft.strategies.plan import Plan, attach
from vlmpeft.training.gradient_check import gradient_self_test

PLAN = Plan(vision=LoRA(r=2), projector=Full(), language=LoRA(r=2))


def draw_pictures(folder: Path) -> Path:
    """a.png, b.png, c.png: noise of three sizes and shapes, the same in every session."""
    noise = np.random.default_rng(0)
    for name, size in {"a": (56, 56), "b": (112, 56), "c": (70, 150)}.items():
        grey = noise.normal(128, 80, size[::-1]).clip(0, 255).astype("uint8")
        Pillow.fromarray(grey).convert("RGB").save(folder / f"{name}.png")
    return folder


@dataclass(frozen=True)
class Subject:
    """A family's folder, pictures to show it, and room to write."""

    folder: Path
    pictures: Path
    scratch: Path

    def spec(self, **bits: str) -> BaseSpec:
        return BaseSpec(path=str(self.folder), bits=Bits(**{"language": "fp32", **bits}))

    def load(self, **bits: str) -> tuple[Any, Encoder, Any]:
        model, processor, components = load_base(self.spec(**bits))
        return model, Encoder(processor), components

    def talk(self, *turns: str) -> Conversation:
        """User and assistant in turn; `a|b|text` shows pictures a and b before the text."""
        messages = []
        for number, turn in enumerate(turns):
            *names, text = turn.split("|")
            images = [Image(str(self.pictures / f"{name}.png")) for name in names]
            messages.append(Message("assistant" if number % 2 else "user", (*images, text)))
        return Conversation("talk", tuple(messages), "record 0")

    def batch(self, encoder: Encoder, *talks: tuple[str, ...]) -> dict[str, Any]:
        return collate([encoder.encode(self.talk(*talk)) for talk in talks], pad_id(encoder))


def pad_id(encoder: Encoder) -> int:
    return encoder.processor.tokenizer.pad_token_id or 0


def _trains(subject: Subject, *talks: tuple[str, ...], **bits: str) -> None:
    """One batch gives finite gradients where planned and nowhere else, the same after an evaluation."""
    model, encoder, components = subject.load(**bits)
    batch = subject.batch(encoder, *talks)
    assert (batch["labels"] != IGNORE).any()
    attached = attach(PLAN, model, components)
    found = gradient_self_test(attached, batch)
    assert not found.problems, found.problems[:3]
    trained = attached.trainable().keys() - set(found.unreachable)
    reached = {components.component_of(name) for name in trained}
    shows = any("|" in turn for talk in talks for turn in talk)
    wanted = {"vision", "projector", "language"} if shows else {"language"}
    assert wanted <= reached, f"no gradient reaches {sorted(wanted - reached)}"


def trains(subject: Subject) -> None:
    """Pictures of different sizes in one batch, several turns."""
    _trains(subject, ("a|what?", "that", "sure?", "yes"), ("b|what?", "this one"), ("c|hm", "x"))


def two_pictures(subject: Subject) -> None:
    """Two pictures in one question, and two over two turns."""
    _trains(subject, ("a|b|same?", "no"), ("c|what?", "that", "a|and this?", "other"))
    model, encoder, _ = subject.load()
    losses = [
        float(supervised_loss(model, subject.batch(encoder, (question, "no")))[0])
        for question in ("a|b|same?", "a|c|same?", "c|b|same?")
    ]
    assert abs(losses[0] - losses[1]) > 1e-4, "the second picture changes nothing"
    assert abs(losses[0] - losses[2]) > 1e-4, "the first picture changes nothing"


def text_only(subject: Subject) -> None:
    """A batch with pictures and text-only turns, and one of text alone."""
    _trains(subject, ("a|what?", "that"), ("no picture", "none"))
    _trains(subject, ("no picture", "none"), ("hello", "you"))


def picture_matters(subject: Subject) -> None:
    """The loss changes when the picture changes."""
    model, encoder, _ = subject.load()
    losses = [
        float(supervised_loss(model, subject.batch(encoder, (f"{name}|what?", "that")))[0])
        for name in "ab"
    ]
    assert abs(losses[0] - losses[1]) > 1e-4, f"{losses} for two pictures"


def saves_and_loads(subject: Subject) -> None:
    """An adapter on all three components, saved and loaded, gives bit-equal losses."""
    model, encoder, components = subject.load()
    attached = attach(PLAN, model, components)
    with torch.no_grad():
        for parameter in attached.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = subject.batch(encoder, ("a|what?", "that"), ("b|what?", "this one"))
    ours = supervised_loss(model, batch)[0].detach()
    folder, spec = subject.scratch / "adapter", subject.spec()
    save_adapter(folder, attached, processor=encoder.processor, base=origin(spec))
    again, _, parts = load_base(spec)
    before = supervised_loss(again, batch)[0].detach()
    load_adapter(folder, again, parts)
    assert torch.equal(supervised_loss(again, batch)[0].detach(), ours)
    assert not torch.equal(before, ours)


def generates(subject: Subject) -> None:
    """Greedy answers in a batch of different prompts are those given alone."""
    model, encoder, _ = subject.load()
    talks = [subject.talk(*t) for t in (("a|what is it?", "x"), ("c|hm", "x"), ("b|and now?", "x"))]
    samples = [(Item(str(n), talk, 1), encoder.encode(talk, 1)) for n, talk in enumerate(talks)]
    decoder = WholePrompts(model, Limits(6, (), pad_id(encoder)))
    with torch.no_grad():
        together = decoder.decode(samples, [[]] * len(samples))
        alone = [decoder.decode([sample], [[]])[0] for sample in samples]
    assert [d.ids for d in together] == [d.ids for d in alone], "answers change in a batch"
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-3, atol=1e-3)


def quantized(subject: Subject) -> None:
    """The same gradients law with language in NF4."""
    _trains(subject, ("a|what?", "that"), ("b|what?", "this one"), language="nf4")


def quantized_tower(subject: Subject) -> None:
    """LoRA on a vision tower in NF4."""
    _trains(subject, ("a|what?", "that"), ("b|what?", "this one"), vision="nf4", language="nf4")


CHECKS = {
    "trains": trains,
    "two pictures": two_pictures,
    "text only": text_only,
    "picture matters": picture_matters,
    "saves and loads": saves_and_loads,
    "generates": generates,
    "nf4 language": quantized,
    "nf4 vision": quantized_tower,
}


def reasons(subject: Subject) -> dict[str, str]:
    """Check -> why it does not pass; empty if it does."""
    found = {}
    for name, check in CHECKS.items():
        try:
            check(subject)
            found[name] = ""
        except Exception as error:  # noqa: BLE001  whatever it is, it is what the family cannot do
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found
