"""Qwen2.5-VL from start to end: mergers inside the tower, pictures of different sizes, text-only turns."""

import json
import sys

import pytest
import torch
from PIL import Image as Pillow

from vlmpeft.__main__ import main
from vlmpeft.base.loading import load_base
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.batches.collate import collate, collate_prompts
from vlmpeft.data.batches.dataset import Item
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.decoding import Limits, WholePrompts
from vlmpeft.evaluation.prefix_cache import SharedPrefixes
from vlmpeft.evaluation.token_loss import supervised_loss, token_losses
from vlmpeft.evaluation.tower_cache import FeatureCache
from vlmpeft.runtime.records import read_record
from vlmpeft.strategies import Full, LoRA
from vlmpeft.strategies.plan import Plan, attach

from ..conftest import llava, randomize, write_json
from ..data.test_encode import Image, talk
from ..families import FAMILIES, save_qwen


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    for name, size in {"a": (56, 56), "b": (112, 56), "c": (70, 150)}.items():
        Pillow.effect_noise(size, 80).convert("RGB").save(folder / f"{name}.png")
    return folder


@pytest.fixture
def batch(qwen, sizes):
    encoder = Encoder(load_base(BaseSpec(path=str(qwen)))[1])
    a, b, c = (Image(str(sizes / f"{name}.png")) for name in "abc")
    return collate(
        [
            encoder.encode(talk((a, "what?"), "that", (b, "and this?"), "other")),
            encoder.encode(talk("no picture", "none")),
            encoder.encode(talk((c, b, "same?"), "no")),
        ],
        0,
    )


def test_every_planned_component_of_qwen_gets_gradients_on_a_4_bit_base(qwen, batch):
    model, _, components = load_base(BaseSpec(path=str(qwen)))
    attached = attach(
        Plan(vision=LoRA(r=2), projector=Full(), language=LoRA(r=4)), model, components
    )
    randomize(attached)
    loss, tokens = supervised_loss(model, batch)
    loss.backward()
    assert tokens > 0
    trainable = attached.trainable()
    assert {components.component_of(name) for name in trainable} == {
        "vision",
        "projector",
        "language",
    }
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trainable.values())
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trainable)


def test_the_loss_changes_with_the_picture_and_with_positions(qwen, batch):
    """Forgetting mm_token_type_ids trains Qwen2.5-VL with other positions, silently."""
    model, _, _ = load_base(BaseSpec(path=str(qwen)))
    loss = supervised_loss(model, batch)[0].item()
    other = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    assert supervised_loss(model, other)[0].item() != pytest.approx(loss, rel=1e-4)
    assert "mm_token_type_ids" in batch
    assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape


def test_qwen_runs_from_fit_to_validate(qwen, sizes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vlmpeft"])
    records = [llava(f"q{i}", f"a{i % 2}", "abc"[i % 3] + ".png", id=str(i)) for i in range(9)]
    data = write_json(tmp_path / "d.json", [*records, llava("t", "u", image=None, id="t")])
    args = ["fit", f"--model.base.path={qwen}", f"--data.train={data}", f"--data.val={data}"]
    args += [
        f"--data.image_dir={sizes}",
        "--model.plan.language=LoRA",
        "--model.plan.projector=Full",
    ]
    args += [
        f"--runs_dir={tmp_path}",
        "--run_name=q",
        "--data.batch_size=4",
        "--trainer.max_epochs=1",
    ]
    assert main(args) == 0
    record = read_record(tmp_path / "q")
    assert record["trainable"] == record["reachable"] > 0
    capsys.readouterr()
    assert main(["validate", "--adapter", str(tmp_path / "q" / "adapter")]) == 0
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {f"val/{k}": v for k, v in record["metrics"]["tuned"]["val"].items()} == scores


def test_generation_is_the_same_alone_and_in_a_batch(qwen, sizes, tmp_path):
    """Left padding must not move positions or pictures."""
    model, processor, _ = load_base(BaseSpec(path=str(qwen), bits=_fp32()))
    encoder = Encoder(processor)
    talks = [
        talk((Image(str(sizes / "a.png")), "what is it?"), "x"),
        talk("hello", "x"),
        talk((Image(str(sizes / "c.png")), "hm"), "x"),
    ]
    samples = [encoder.encode(one) for one in talks]
    settings = {"max_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        together = model.generate(**collate_prompts(samples, 0), **settings)[:, -6:]
        alone = [model.generate(**collate_prompts([s], 0), **settings)[0, -6:] for s in samples]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_qwen_s_features_are_cached_and_its_prefixes_are_not_shared(qwen, sizes):
    """Positions in three streams go on from the whole prompt, so prompts are decoded whole."""
    model, processor, _ = load_base(BaseSpec(path=str(qwen), bits=_fp32()))
    model.eval()
    encoder = Encoder(processor)
    talks = [
        talk((Image(str(sizes / f"{name}.png")), text), "x")
        for name in "abc"
        for text in ("what is it?", "and now?")
    ] + [talk("no picture", "y")]
    samples = [(Item(str(n), t, 1), encoder.encode(t, 1)) for n, t in enumerate(talks)]
    limits = Limits(5, (1,), 0)
    features = FeatureCache(model)
    assert not SharedPrefixes(model, limits, features).serves(samples)
    with torch.no_grad():
        cached = WholePrompts(model, limits, features).decode(samples, [[]] * len(samples))
        plain = WholePrompts(model, limits).decode(samples, [[]] * len(samples))
    assert len(features._features) == 3
    for one, other in zip(cached, plain, strict=True):
        assert one.ids == other.ids
        assert one.losses == pytest.approx(other.losses, rel=1e-4)


def test_pixel_limit_holds_for_pictures_and_is_saved_with_the_processor(tmp_path):
    """A processor with a limit of its own gets ours, so that plain transformers sees as many tokens."""
    from transformers import AutoProcessor

    from ..families import qwen_processor

    Pillow.effect_noise((2000, 1500), 80).convert("RGB").save(tmp_path / "big.png")
    one = talk((Image(str(tmp_path / "big.png")), "what?"), "that")
    processor = qwen_processor()
    encoded = Encoder(processor, max_pixels=56 * 56).encode(one)
    assert encoded.model_inputs["image_grid_thw"].prod() * 14 * 14 <= 56 * 56
    processor.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    plain = again.image_processor(Pillow.open(tmp_path / "big.png"), return_tensors="pt")
    assert torch.equal(plain["image_grid_thw"], encoded.model_inputs["image_grid_thw"])
    assert (
        Encoder(qwen_processor(), max_pixels=None).encode(one).model_inputs["image_grid_thw"].prod()
        > 2 * plain["image_grid_thw"].prod()
    )


# transformers' processor gives numpy a tensor
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["paligemma", "gemma3"])
def test_no_token_of_an_answer_sees_a_later_one(name, sizes, tmp_path):
    """PaliGemma reads its prompt both ways; an answer read so would give itself away."""
    FAMILIES[name].save(tmp_path)
    model, processor, _ = load_base(BaseSpec(path=str(tmp_path), bits=_fp32()))
    encoder, shown = Encoder(processor), Image(str(sizes / "a.png"))
    one, other = talk((shown, "what?"), "that is x"), talk((shown, "what?"), "that is y")
    losses = [token_losses(model, collate([encoder.encode(t)], 0)).detach() for t in (one, other)]
    same = len("that is ")
    torch.testing.assert_close(losses[0][:same], losses[1][:same])
    assert abs(losses[0][same] - losses[1][same]) > 1e-3
    replaced = encoder.encode(one, 1)
    replaced = replaced.with_answer(*replaced.turns[0], encoder.answer_ids(one, 1, "that is y"))
    torch.testing.assert_close(token_losses(model, collate([replaced], 0)).detach(), losses[1])


def test_a_generate_that_drops_logits_processors_still_gives_log_probabilities(sizes, tmp_path):
    """Janus's does: the answers are read once more."""
    FAMILIES["janus"].save(tmp_path)
    model, processor, _ = load_base(BaseSpec(path=str(tmp_path), bits=_fp32()))
    encoder = Encoder(processor)
    talks = [talk((Image(str(sizes / f"{name}.png")), "what?"), "that") for name in "ab"]
    samples = [(Item(str(n), t, 1), encoder.encode(t, 1)) for n, t in enumerate(talks)]
    with torch.no_grad():
        decoded = WholePrompts(model, Limits(4, (), 0)).decode(samples, [[]] * 2)
        for (_, encoded), one in zip(samples, decoded, strict=True):
            logits = model(**collate_prompts([encoded], 0)).logits[0, -1]
            assert one.ids[0] == int(logits.argmax())
            assert one.log_probabilities[0] == pytest.approx(
                float(logits.log_softmax(-1).max()), abs=1e-4
            )
            assert len(one.log_probabilities) == len(one.ids) == 4


@pytest.mark.parametrize("name", ["gemma3", "internvl", "janus"])
def test_the_image_token_is_the_one_that_fills_a_picture_s_positions(name, sizes, tmp_path):
    """Gemma 3's processor calls the mark before a picture so, and Janus's says nothing."""
    FAMILIES[name].save(tmp_path)
    model, processor, _ = load_base(BaseSpec(path=str(tmp_path), bits=_fp32()))
    encoder = Encoder(processor)
    encoded = encoder.encode(talk((Image(str(sizes / "a.png")), "what?"), "that"))
    features = model.base_model.get_image_features(
        encoded.model_inputs["pixel_values"], return_dict=True
    ).pooler_output
    places = int((encoded.input_ids == encoder.image_token_id).sum())
    assert places == sum(one.reshape(-1, one.shape[-1]).shape[0] for one in features) > 1


def _fp32():
    from vlmpeft.base.spec import Bits

    return Bits(language="fp32")
