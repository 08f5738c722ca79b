"""One optimizer step of two processes under DDP: `python -m tests.two_ranks RANK PORT OUT` writes its gradients."""

import os
import sys

import torch

from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()

import lightning.pytorch as pl

from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.strategies import LoRA
from vlmpeft.strategies.plan import Plan
from vlmpeft.training.module import VLMModule

# (question tokens, answer tokens) of each micro-batch of one accumulation window, rank by rank: 4 and 12 are learnt
WINDOWS = [[(3, 1), (5, 3)], [(4, 2), (2, 10)]]


def batches(rank):
    """A rank's micro-batches of one conversation each."""
    return [_batch(*lengths) for lengths in WINDOWS[rank]]


def _batch(question, answer):
    ids = (17 * torch.arange(question + answer) % 200 + 5)[None]
    labels = ids.clone()
    labels[:, :question] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def module(strategy=LoRA(r=2, dropout=0.0)):  # noqa: B008  frozen
    return VLMModule(BaseSpec(bits=Bits(language="fp32")), Plan(language=strategy))


def give_values(attached):
    """The same in every process, and no trained tensor zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attached.trainable().values():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


class SameStart(pl.Callback):
    """Values are given when the plan is on the model; notes the seed of each micro-batch."""

    def __init__(self):
        self.seeds = []

    def on_fit_start(self, trainer, pl_module):
        give_values(pl_module.attached)

    def on_train_batch_end(self, *args):
        self.seeds.append(torch.initial_seed())


def gradients_of(learner):
    return {name: p.grad.clone() for name, p in learner.attached.trainable().items()}


def step(learner, rank, **trainer):
    """(gradients that the optimizer is given, by the trained tensor's name, the seed of each micro-batch)."""
    start = SameStart()
    pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
        logger=False,
        callbacks=[start],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    ).fit(learner, torch.utils.data.DataLoader(batches(rank), batch_size=None))
    return gradients_of(learner), start.seeds


if __name__ == "__main__":
    rank, port, out = sys.argv[1:]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank}
    torch.save(step(module(), int(rank), strategy="ddp", devices=2), out)
