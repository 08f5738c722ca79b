"""Features of a frozen tower that are kept: the same loss and gradients, the tower run once a picture, never where it trains."""

import pytest
import torch

from vlmpeft.data.conversation import Image
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.strategies import DoRA, Full, LoRA
from vlmpeft.strategies.plan import Plan, attach
from vlmpeft.training.frozen_tower import PICTURES, FrozenTower, KeptOutputs

from ..conftest import llava, randomize, write_json

PLANS = {
    "projector in full": Plan(projector=Full(), language=LoRA(r=2)),
    "projector wrapped": Plan(projector=DoRA(r=2, dropout=0.0)),
    "language": Plan(language=LoRA(r=2)),
}


@pytest.fixture
def data(tmp_path, pictures, tiny):
    """Prepared training data: 8 conversations on 3 pictures, and one without."""
    from vlmpeft.data.datamodule import VLMData

    records = [llava(f"q {i}?", f"a {i}", "abc"[i % 3] + ".png", id=f"t{i}") for i in range(8)]
    path = write_json(tmp_path / "train.json", [*records, llava("hi", "nut", image=None, id="x")])
    data = VLMData(train=path, image_dir=str(pictures), batch_size=4)
    data.prepare(tiny[1], splits=("train",))
    return data


def attached_to(tiny, plan):
    model, _, components = tiny
    torch.manual_seed(0)
    found = attach(plan, model, components)
    randomize(found)
    return found


def calls_of(module):
    """A list that grows with each call of a module."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_loss_and_gradients_are_those_of_pixels_and_the_tower_runs_once_a_picture(tiny, data, plan):
    attached = attached_to(tiny, plan)
    tower = FrozenTower(attached, data.num_pictures("train"))
    batches = [*data.train_dataloader()] * 2
    first = tower.inputs(batches[0])
    assert tower.is_used
    assert "mm_encoder_outputs" in first
    calls = calls_of(attached.model.model.vision_tower)
    for batch in batches:
        found = []
        for inputs in (tower.inputs(batch), {k: v for k, v in batch.items() if k != PICTURES}):
            attached.model.zero_grad()
            loss, _ = supervised_loss(attached.model, inputs)
            loss.backward()
            gradients = {
                n: p.grad.clone() for n, p in attached.trainable().items() if p.grad is not None
            }
            found.append((loss.detach(), gradients))
        (ours, our_gradients), (plain, plain_gradients) = found
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
        assert our_gradients.keys() == plain_gradients.keys() != set()
        for name, gradient in plain_gradients.items():
            torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-5)
    with_pictures = sum("pixel_values" in batch for batch in batches)
    calls.clear()
    for batch in batches:
        tower.inputs(batch)
    assert with_pictures > 0
    assert calls == []
    assert {image.name for image in tower.kept} <= {"a.png", "b.png", "c.png", ""}
    assert len(tower.kept) == 3


def test_kept_outputs_do_not_depend_on_the_batch_they_were_first_in(tiny, data):
    attached = attached_to(tiny, PLANS["language"])
    kept = []
    for seed in (0, 1):
        data.seed = seed
        tower = FrozenTower(attached, 3, KeptOutputs())
        for batch in data.train_dataloader():
            tower.inputs(batch)
        kept.append(tower.kept)
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][picture], kept[1][picture]) for picture in kept[0])


def test_no_random_number_is_used_for_a_picture_that_is_not_kept_yet(tiny, data):
    attached = attached_to(tiny, Plan(projector=DoRA(r=2, dropout=0.5)))
    attached.model.model.multi_modal_projector.train()
    batch = next(iter(data.train_dataloader()))
    tower = FrozenTower(attached, 3)
    tower.inputs(batch)
    torch.manual_seed(7)
    known = tower.inputs(batch)["mm_encoder_outputs"]["image"].pooler_output
    tower.kept.clear()
    torch.manual_seed(7)
    again = tower.inputs(batch)["mm_encoder_outputs"]["image"].pooler_output
    assert all(torch.equal(a, b) for a, b in zip(known, again, strict=True))


@pytest.mark.parametrize(
    ("plan", "limit"),
    [
        (Plan(vision=LoRA(r=2)), 2**30),
        (Plan(vision=LoRA(r=2), language=LoRA(r=2)), 2**30),
        (PLANS["language"], 100),
    ],
    ids=["vision trains", "all train", "no memory"],
)
def test_pixels_are_used_where_the_tower_trains_or_outputs_do_not_fit(tiny, data, plan, limit):
    tower = FrozenTower(attached_to(tiny, plan), data.num_pictures("train"), KeptOutputs(limit))
    for batch in data.train_dataloader():
        inputs = tower.inputs(batch)
        assert "mm_encoder_outputs" not in inputs
        assert PICTURES not in inputs
    assert len(tower.kept) == 0


def test_batch_says_which_picture_each_conversation_shows(data):
    for batch in data.train_dataloader():
        assert len(batch[PICTURES]) == len(batch["input_ids"])
        assert all(isinstance(picture, Image) for one in batch[PICTURES] for picture in one)
