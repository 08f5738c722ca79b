"""A training step of a LoRA by this package beside plain PEFT's, and of a bottleneck beside a LoRA.

    python benchmarks/strategies.py    # CPU, 3 GB, 3 minutes; writes results/benchmarks/strategies.json

The arms take turns, step by step, on one random LLaVA of real proportions and the same batches, so that a
noisy machine slows all of them alike; ratios are medians over the rounds with bootstrap intervals.
- lora: LoRA (r 16) on every linear layer of the language model, attached by vlmpeft.
- peft: plain PEFT's `get_peft_model` with the same layers by full path. Void unless it has the same modules and,
  from the same numbers, the same losses.
- bottleneck: Pfeiffer adapters with as many parameters as the LoRA (to 2 %).
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from step import build_loader, build_model

from vlmpeft import LoRA, Plan, attach, find_components
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json
from vlmpeft.strategies import BottleneckAdapter

TOLERANCE, MOST_BOTTLENECK = 1e-5, 1.15
LORA = LoRA(r=16, dropout=0.0)


class Arm:
    """A model with adapters, its optimizer, and what its steps said."""

    def __init__(self, model: Any, parameters: list[torch.nn.Parameter]):
        self.model, self.parameters = model, parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        start = time.perf_counter()
        loss, tokens = supervised_loss(self.model, batch)
        (loss / tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(float(loss.detach() / tokens))

    @property
    def trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def ours(base: Any, strategy: Any) -> Arm:
    model = copy.deepcopy(base)
    attached = attach(Plan(language=strategy), model, find_components(model))
    return Arm(model, list(attached.trainable().values()))


def plain_peft(base: Any, like: Arm) -> Arm:
    """PEFT's own model of the same targets, started from the same numbers."""
    from peft import LoraConfig, get_peft_model

    targets = [n for n, m in like.model.named_modules() if hasattr(m, "lora_A")]
    config = LoraConfig(r=LORA.r, lora_alpha=2 * LORA.r, lora_dropout=0.0, target_modules=targets)
    wrapped: Any = get_peft_model(copy.deepcopy(base).requires_grad_(False), config)
    model = wrapped.base_model.model
    model.load_state_dict(like.model.state_dict())
    trainable = [p for p in model.parameters() if p.requires_grad]
    return Arm(model.eval(), trainable)


def structure(model: Any) -> list[tuple[str, str]]:
    return [(name, type(module).__qualname__) for name, module in model.named_modules()]


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """(median, 2.5 %, 97.5 %) over 2,000 bootstrap samples of the rounds."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[50], medians[1949]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/strategies.json"))
    args = parser.parse_args()
    base = build_model().requires_grad_(False).eval()
    lora = ours(base, LORA)
    layers = base.config.text_config.num_hidden_layers
    d = base.config.text_config.hidden_size
    width = round((lora.trainable / layers - d) / (2 * d + 1))
    arms = {
        "lora": lora,
        "peft": plain_peft(base, lora),
        "bottleneck": ours(base, BottleneckAdapter(width=width)),
    }
    same = structure(arms["lora"].model) == structure(arms["peft"].model)
    order = list(arms)
    for number, batch in enumerate(build_loader(args.rounds + 1)):
        for name in order[number % 3 :] + order[: number % 3]:
            arms[name].step(batch)
    record = evaluate(arms, same)
    write_json(args.output, record | {"versions": versions()})
    print(record["table"])
    return 0 if record["passed"] else 4


def evaluate(arms: dict[str, Arm], same: bool) -> dict[str, Any]:
    """Ratios of every round but the first, against ours, and what they have to be."""
    times = {name: arm.seconds[1:] for name, arm in arms.items()}
    difference = max(
        abs(a - b) / abs(b) for a, b in zip(arms["lora"].losses, arms["peft"].losses, strict=True)
    )
    sizes = {name: arm.trainable for name, arm in arms.items()}
    rows, passed = [], same and difference < TOLERANCE
    found = {}
    for name, against in (("lora", "peft"), ("bottleneck", "lora")):
        ratios = [a / b for a, b in zip(times[name], times[against], strict=True)]
        median, low, high = interval(ratios)
        found[f"{name} / {against}"] = {"median": median, "interval": [low, high]}
        verdict = (
            f"same modules, losses within {difference:.0e}"
            if name == "lora" and passed
            else "void: modules or losses differ"
            if name == "lora"
            else f"{sizes[name] / sizes[against]:.3f} of its parameters; "
            + ("<= 1.15 met" if median <= MOST_BOTTLENECK else "<= 1.15 MISSED")
        )
        rows.append(f"| {name} / {against} | {median:.3f} | {low:.3f} to {high:.3f} | {verdict} |")
    passed = passed and found["bottleneck / lora"]["median"] <= MOST_BOTTLENECK
    head = ["| step | ratio | 95 % interval | |", "|---|---|---|---|"]
    return {
        "table": "\n".join([*head, *rows]),
        "ratios": found,
        "loss_difference": difference,
        "trainable": sizes,
        "rounds": len(times["lora"]),
        "cpu_threads": torch.get_num_threads(),
        "passed": passed,
    }


if __name__ == "__main__":
    sys.exit(main())
