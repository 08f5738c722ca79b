"""One training step of vlmpeft beside the field's common recipe: speed and memory, at equal losses.

    python benchmarks/step.py    # Linux, CPU, 6 GB, 6 minutes; writes results/benchmarks/step.json

Every arm gets the same weights and batches in a fresh process: LoRA (r 16) on q, k, v, o of the
language model and a fully trained projector, on a random LLaVA of real proportions.
- hf_trainer_2048: transformers' Trainer, padded to 2,048 tokens, logits everywhere, gradient
  checkpointing with enable_input_require_grads; the table's ratios are against it.
- hf_trainer_tuned: the same Trainer, padded to the longest of the batch, no checkpointing.
- vlmpeft: VLMModule under Lightning's Trainer; only base and (constant) rate are set from here.
Unless the losses, means over supervised tokens, agree within 1e-5 (relative) over at least 4 steps, a
row is void and the exit code 4. Memory is the peak resident size of the steps minus that before them.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from datetime import UTC, datetime
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from vlmpeft import Full, LoRA, Plan, VLMModule, attach, find_components
from vlmpeft.data.batches.collate import collate
from vlmpeft.data.batches.encode import IGNORE, Encoded
from vlmpeft.data.batches.sampler import BucketBatchSampler
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json
from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()  # both of these import torchvision
import lightning.pytorch as pl
import transformers as hf

ARMS = REFERENCE, TUNED, OURS = "hf_trainer_2048", "hf_trainer_tuned", "vlmpeft"
TOLERANCE, FEWEST_STEPS, LEAST_SPEED, MOST_MEMORY = 1e-5, 4, 6.0, 0.25  # against REFERENCE
BATCH_SIZE, MAX_LENGTH, RATE, MAX_NORM, SEED = 4, 2048, 1e-3, 1.0, 0
SIDE, IMAGE_TOKENS, IMAGE_ID, PAD_ID, VOCABULARY = 336, 576, 32_000, 0, 32_064
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA = LoRA(r=16, alpha=32, dropout=0.0, targets=QKVO, learning_rate=RATE)
PLAN = Plan(projector=Full(learning_rate=RATE), language=LORA)


def build_model() -> Any:
    """LLaVA-1.5 at its image size, image tokens and vocabulary, with narrower and fewer layers."""
    narrow: Any = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 4}
    wider: Any = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8}
    vision = hf.CLIPVisionConfig(image_size=SIDE, patch_size=14, num_hidden_layers=8, **narrow)
    text = hf.LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=8, **wider)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
    torch.manual_seed(SEED)
    return hf.LlavaForConditionalGeneration(config)


def draw_sample(rng: torch.Generator) -> Encoded:
    """A random picture with 40 to 200 random text tokens, of which the last third is the answer."""
    num_text = int(torch.randint(40, 201, (), generator=rng))
    text = torch.randint(3, IMAGE_ID, (num_text,), generator=rng)
    ids = torch.cat([text[:1], torch.full((IMAGE_TOKENS,), IMAGE_ID), text[1:]])  # (T,)
    start = len(ids) - num_text // 3
    labels = torch.where(torch.arange(len(ids)) < start, IGNORE, ids)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=rng)
    return Encoded(ids, labels, ((start, len(ids)),), {"pixel_values": pixels})


def build_loader(steps: int, pad_to: int = 0) -> torch.utils.data.DataLoader[Any]:
    """The batches of every arm, padded to their longest sample, or further to `pad_to` tokens."""
    rng = torch.Generator().manual_seed(SEED)
    samples = [draw_sample(rng) for _ in range(steps * BATCH_SIZE)]
    sampler = BucketBatchSampler([len(sample) for sample in samples], BATCH_SIZE, seed=SEED)
    batches: Any = [collate([samples[i] for i in chosen], PAD_ID) for chosen in sampler]
    for batch in batches:
        missing = max(0, pad_to - batch["input_ids"].shape[1])
        for key, value in (("input_ids", PAD_ID), ("attention_mask", 0), ("labels", IGNORE)):
            batch[key] = torch.nn.functional.pad(batch[key], (0, missing), value=value)
    return torch.utils.data.DataLoader(batches, batch_size=None)


class StepMeter:
    """Losses, times and memory of the steps of this process."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.clock: list[float] = []

    def begin(self, batch: dict[str, torch.Tensor]) -> None:
        """Before a forward pass; at the first, gives back what is free and sets the baselines."""
        if not self.clock:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM = VmRSS (man proc_pid_clear_refs)
            self.resident_bytes = _status_bytes("VmRSS")
            self.end()
        self.tokens.append(int((batch["labels"] != IGNORE).sum()))

    def end(self, *_: Any) -> None:
        """After an optimizer step; what follows, fetching data included, is of the next."""
        self.clock.append(time.perf_counter())

    def result(self) -> dict[str, Any]:
        """The record of an arm; the first step is a warm-up and counts for the memory alone."""
        seconds = [after - before for before, after in pairwise(self.clock)]
        rates = [tokens / s for tokens, s in zip(self.tokens, seconds, strict=True)]
        return {
            "losses": self.losses,
            "supervised_tokens": self.tokens,
            "step_seconds": [round(s, 3) for s in seconds],
            "tokens_per_second": statistics.median(rates[1:] or rates),
            "additional_memory_bytes": _status_bytes("VmHWM") - self.resident_bytes,
            "cpu_threads": torch.get_num_threads(),
        }


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def build_optimizer(attached: Any, meter: StepMeter) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(attached.parameter_groups(), weight_decay=0.0)
    optimizer.register_step_post_hook(meter.end)
    return optimizer


class MeteredTrainer(hf.Trainer):
    def __init__(self, loader: Any, meter: StepMeter, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loader, self.meter = loader, meter

    def get_train_dataloader(self) -> Any:
        return self.loader

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.meter.begin(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.meter.losses.append(float(loss))
        return loss


def run_hf_trainer(meter: StepMeter, steps: int, common: bool) -> None:
    """The common recipe, or the tuned one."""
    model = build_model()
    torch.manual_seed(SEED)
    attached = attach(PLAN, model, find_components(model))
    if common:
        model.enable_input_require_grads()
    loader = build_loader(steps, pad_to=MAX_LENGTH if common else 0)
    optimizers = (build_optimizer(attached, meter), None)
    arguments = hf.TrainingArguments(
        tempfile.gettempdir(), save_strategy="no", report_to=[], use_cpu=True, max_steps=steps,
        max_grad_norm=MAX_NORM, lr_scheduler_type="constant", gradient_checkpointing=common,
    )  # fmt: skip
    MeteredTrainer(loader, meter, model=model, args=arguments, optimizers=optimizers).train()


class MeteredModule(VLMModule):
    def __init__(self, meter: StepMeter) -> None:
        super().__init__(plan=PLAN)
        self.meter, self.seed = meter, SEED
        self.model = build_model()
        self.components = find_components(self.model)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.attached, self.meter)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.meter.begin(batch)
        loss = super().training_step(batch, batch_idx)
        self.meter.losses.append(float(loss.detach()) / self.meter.tokens[-1])
        return loss


def run_arm(arm: str, steps: int) -> dict[str, Any]:
    """One arm, in this process; what the trainers print goes to stderr."""
    meter = StepMeter()
    with redirect_stdout(sys.stderr):
        if arm == OURS:
            trainer = pl.Trainer(
                accelerator="cpu", max_steps=steps, gradient_clip_val=MAX_NORM, logger=False,
                enable_checkpointing=False, enable_progress_bar=False,
            )  # fmt: skip
            trainer.fit(MeteredModule(meter), build_loader(steps))
        else:
            run_hf_trainer(meter, steps, common=arm == REFERENCE)
    return meter.result()


def compare(arm: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """An arm's speed and memory as multiples of another's, and whether their losses agree."""
    differences = [abs(a - b) / b for a, b in zip(arm["losses"], other["losses"], strict=True)]
    return {
        **{key: arm[key] / other[key] for key in ("tokens_per_second", "additional_memory_bytes")},
        "largest_loss_difference": max(differences),
        "parity": len(differences) >= FEWEST_STEPS and all(d <= TOLERANCE for d in differences),
    }


def judge(arm: str, ratios: dict[str, Any]) -> str:
    """What the comparison with REFERENCE says of an arm."""
    if arm != OURS or not ratios["parity"]:
        return "parity" if ratios["parity"] else "void"
    fast = "met" if ratios["tokens_per_second"] >= LEAST_SPEED else "missed"
    small = "met" if ratios["additional_memory_bytes"] <= MOST_MEMORY else "missed"
    return f"parity; >= {LEAST_SPEED:g}x tokens/s {fast}, <= {MOST_MEMORY:g}x memory {small}"


def table(comparisons: dict[str, dict[str, Any]]) -> str:
    """Markdown; a void row shows no ratios."""
    rows = ["| arm | tokens/s | memory | loss difference | verdict |", "|---|---|---|---|---|"]
    for arm, r in comparisons.items():
        ratios = f"{r['tokens_per_second']:.2f}x | {r['additional_memory_bytes']:.3f}x"
        cells = f"{ratios if r['parity'] else '- | -'} | {r['largest_loss_difference']:.1e}"
        rows.append(f"| {arm} | {cells} | {judge(arm, r)} |")
    return "\n".join(rows)


def main() -> int:
    """Run the arms, write the record, print the table; 4 if losses disagree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of each arm")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/step.json"))
    args = parser.parse_args()
    arms = {}
    for arm in ARMS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh_process:
            arms[arm] = fresh_process.submit(run_arm, arm, args.steps).result()
    ratios = {arm: compare(result, arms[REFERENCE]) for arm, result in arms.items()}
    record = {
        "schema": 1, "benchmark": "step", "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(), "cpu_threads": arms[OURS]["cpu_threads"], "steps": args.steps,
        "ratios": {REFERENCE: ratios, TUNED: {OURS: compare(arms[OURS], arms[TUNED])}},
        "verdicts": {arm: judge(arm, r) for arm, r in ratios.items()}, "arms": arms,
        "table": table(ratios),
    }  # fmt: skip
    write_json(args.output, record)
    print(table(ratios))
    return 0 if all(r["parity"] for r in ratios.values()) else 4


if __name__ == "__main__":
    sys.exit(main())
