"""The loss is the model's own, whatever is padded, accumulated, checkpointed or spread over processes."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from vlmpeft.base.loading import load_processor, recompute_activations
from vlmpeft.base.spec import BaseSpec
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.encode import Encoder
from vlmpeft.evaluation.token_loss import supervised_loss, token_losses
from vlmpeft.strategies import AdaLoRA, Full, LoRA
from vlmpeft.strategies.plan import Plan, attach

from .. import two_ranks
from ..conftest import ROOT, randomize
from ..data.test_encode import Image, talk


@pytest.fixture(scope="module")
def samples(pictures):
    encoder = Encoder(load_processor(BaseSpec()))
    image = Image(str(pictures / "a.png"))
    return [
        encoder.encode(
            talk((image, "what part is at the top left?"), "gear", "what colour?", "red")
        ),
        encoder.encode(talk("repeat: xyz 42", "xyz 42")),
        encoder.encode(talk((image, "describe the picture."), "a red gear at the top left.")),
        encoder.encode(talk((image, "how many parts are there?"), "1")),
    ]


def _gradients(model, attached, batches):
    for batch in batches:
        loss, _ = supervised_loss(model, batch)
        loss.backward()
    grads = {name: p.grad.clone() for name, p in attached.trainable().items() if p.grad is not None}
    model.zero_grad()
    return grads


def test_loss_equals_the_model_s_own(tiny, samples):
    model, _, _ = tiny
    batch = collate(samples, 0)
    loss, count = supervised_loss(model, batch)
    own = model(**batch)  # transformers' mean over supervised tokens, with logits everywhere
    assert count == (batch["labels"] != -100).sum()
    assert loss / count == pytest.approx(own.loss.item(), rel=1e-6)


def test_losses_are_per_token_in_reading_order(tiny, samples):
    model, _, _ = tiny
    together = token_losses(model, collate(samples, 0))
    one_by_one = torch.cat([token_losses(model, collate([sample], 0)) for sample in samples])
    assert torch.allclose(together, one_by_one, atol=1e-5)


def test_a_batch_without_supervised_tokens_is_zero_with_a_graph(tiny, samples):
    model, _, components = tiny
    attach(Plan(language=LoRA()), model, components)
    batch = collate(samples, 0)
    batch["labels"].fill_(-100)
    loss, count = supervised_loss(model, batch)
    loss.backward()
    assert loss == 0
    assert count == 0


def test_accumulated_sums_equal_one_big_batch(tiny, samples):
    """Micro-batches of unequal token counts: sums add up, means would not."""
    model, _, components = tiny
    attached = attach(Plan(projector=Full(), language=LoRA(dropout=0.0)), model, components)
    randomize(attached)
    whole = _gradients(model, attached, [collate(samples, 0)])
    parts = _gradients(model, attached, [collate(samples[:1], 0), collate(samples[1:], 0)])
    assert whole.keys() == parts.keys() == attached.trainable().keys()
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)


def test_gradients_are_equal_with_and_without_checkpointing(tiny, samples):
    model, _, components = tiny
    plan = Plan(vision=LoRA(dropout=0.0), projector=Full(), language=LoRA(dropout=0.0))
    attached = attach(plan, model, components)
    randomize(attached)
    model.train()
    plain = _gradients(model, attached, [collate(samples, 0)])
    recompute_activations(model)
    checkpointed = _gradients(model, attached, [collate(samples, 0)])
    assert plain.keys() == checkpointed.keys() == attached.trainable().keys()
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)
    assert all(plain[name].abs().max() > 0 for name in plain)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_tower_has_no_graph(tiny, samples, checkpointing):
    model, _, components = tiny
    attach(Plan(projector=Full(), language=LoRA()), model, components)
    if checkpointing:
        model.train()
        recompute_activations(model)
    seen = []
    tower = model.model.vision_tower
    handle = tower.register_forward_hook(
        lambda *args: seen.append(args[-1].last_hidden_state.requires_grad)
    )
    supervised_loss(model, collate(samples, 0))
    handle.remove()
    assert seen == [False]


def test_the_loss_depends_on_the_picture(tiny, samples):
    model, _, _ = tiny
    batch = collate(samples, 0)
    before, _ = supervised_loss(model, batch)
    batch["pixel_values"] = batch["pixel_values"].flip(-1) * 0.5
    after, _ = supervised_loss(model, batch)
    assert not torch.allclose(before, after, rtol=1e-4)


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def _two_processes(folder):
    """What `two_ranks.step` returns in each of two DDP processes."""
    port, outs = _free_port(), [folder / "0.pt", folder / "1.pt"]
    command = [sys.executable, "-m", "tests.two_ranks"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), port, str(out)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    try:
        for process in processes:
            said, _ = process.communicate(timeout=240)
            assert process.returncode == 0, said[-4000:]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(out, weights_only=True) for out in outs]


def test_the_gradient_of_two_processes_is_that_of_one_on_all_their_tokens(tiny, tmp_path):
    """4 supervised tokens on one rank, 12 on the other: the mean of the ranks' means would not be it."""
    model, _, components = tiny
    attached = attach(two_ranks.module().plan, model, components)
    two_ranks.give_values(attached)
    union = [batch for rank in (0, 1) for batch in two_ranks.batches(rank)]
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in union)
    assert tokens == 4 + 12
    expected = {n: g / tokens for n, g in _gradients(model, attached, union).items()}
    steps = _two_processes(tmp_path)
    for found, _ in steps:
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 1e-3
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)
    seeds = [seed for _, own in steps for seed in own]
    assert len({*seeds}) == len(seeds) == 4  # so dropout differs between batches and between ranks


@pytest.mark.filterwarnings("ignore")  # Lightning's of a loop without validation
def test_a_penalty_weighs_as_much_however_many_tokens_are_learnt(tiny):
    """Mean cross-entropy of the window's 4 tokens + 0.1 x the mean |M - I| over P'P and QQ', by hand."""
    strategy = AdaLoRA(init_r=3, target_r=2, warmup=0.9, final=0.05)
    found, _ = two_ranks.step(two_ranks.module(strategy), 0)
    model, _, components = tiny
    attached = attach(Plan(language=strategy), model, components)
    two_ranks.give_values(attached)
    entropy = _gradients(model, attached, two_ranks.batches(0))
    trained = attached.trainable()
    q = [t @ t.T for n, t in trained.items() if ".lora_A." in n]
    p = [t.T @ t for n, t in trained.items() if ".lora_B." in n]
    off = [(gram - torch.eye(3)).square().sum().sqrt() for gram in (*q, *p)]
    (0.1 * sum(off) / len(off)).backward()
    for name, parameter in trained.items():
        regular = 0 if ".lora_E." in name else parameter.grad
        assert ".lora_E." in name or regular.abs().max() > 1e-4
        torch.testing.assert_close(found[name], entropy[name] / 4 + regular, rtol=1e-4, atol=1e-6)
