"""Four adapters merged into the files of a LLaVA-1.5-7B-shaped base: what `merge --to merged --gate weights` holds in memory.

    python benchmarks/streaming.py DIR    # CPU; 30 GB of disk in DIR, tens of minutes; writes results/benchmarks/streaming.json

The base has the real shapes, names and sharding and random bf16 values; the adapters are rank-16 LoRA with random factors on
every linear layer of vision, projector and language. TIES over the whole model needs two passes for its thresholds and one for the merge.
Exit code 4 if the highest resident size is 6 GB or more. That a merge in pieces is the merge in one piece is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vlmpeft.adapters.saving import save_adapter
from vlmpeft.base.components import find_components
from vlmpeft.base.fingerprint import origin
from vlmpeft.base.loading import load_processor, meta_model
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.merging.operands import give_memory
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json
from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops
from vlmpeft.strategies import LoRA
from vlmpeft.strategies.plan import Plan, attach

declare_torchvision_ops()

from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
)

LIMIT_GB, ADAPTERS, RANK, SHARD = 6.0, 4, 16, 5 * 10**9
BF16 = Bits("bf16", "bf16", "bf16")
OUT = Path(__file__).parent.parent / "results/benchmarks/streaming.json"


def config() -> PreTrainedConfig:
    """LLaVA-1.5-7B's."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008)
    return LlavaConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=False, dtype="bfloat16"
    )


def write_base(folder: Path) -> int:
    """Random shards under the names the hub's checkpoint has; returns the number of parameters."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config())
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.config.save_pretrained(folder)
    generator, files = torch.Generator().manual_seed(0), {}
    for number, names in enumerate(_shards(model)):
        file = f"model-{number:05d}.safetensors"
        tensors = {}
        for name, shape in names.items():
            values = torch.empty(shape).normal_(std=0.02, generator=generator)
            tensors[_hub_name(name)] = values.bfloat16()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return sum(p.numel() for p in model.parameters())


def _shards(model: Any) -> list[dict[str, torch.Size]]:
    shards: list[dict[str, torch.Size]] = [{}]
    size = 0
    for name, parameter in model.named_parameters():
        size += 2 * parameter.numel()
        if size > SHARD:
            shards.append({})
            size = 2 * parameter.numel()
        shards[-1][name] = parameter.shape
    return shards


def _hub_name(name: str) -> str:
    """As llava-hf/llava-1.5-7b-hf has it, from before transformers 4.52."""
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return f"language_model.{name}" if name.startswith("lm_head") else name


def write_adapters(base: Path, folder: Path) -> list[str]:
    """LoRA everywhere, without the base's weights."""
    spec = BaseSpec(str(base), BF16)
    processor, about = load_processor(BaseSpec()), origin(spec)
    found = []
    for i in range(ADAPTERS):
        model = meta_model(spec)
        plan = Plan(vision=LoRA(r=RANK), projector=LoRA(r=RANK), language=LoRA(r=RANK))
        attached = attach(plan, model, find_components(model))
        give_memory(attached)
        generator = torch.Generator().manual_seed(1 + i)
        with torch.no_grad():
            for parameter in attached.trainable().values():
                parameter.normal_(std=0.02, generator=generator)
        save_adapter(folder / f"a{i}", attached, processor=processor, base=about)
        found.append(str(folder / f"a{i}"))
    return found


def run(adapters: list[str], out: Path) -> tuple[float, float, dict[str, Any]]:
    """(highest resident GB of the process, its seconds, its report)."""
    command = [sys.executable, "-m", "vlmpeft", "merge", "--method", "ties", "--adapters"]
    start = time.perf_counter()
    options = ["--to", "merged", "--gate", "weights", "--json", "--out", str(out)]
    process = subprocess.Popen([*command, *adapters, *options], stdout=subprocess.PIPE)
    assert process.stdout is not None
    report = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"merge ended with {status}")
    return usage.ru_maxrss * 1024 / 1e9, time.perf_counter() - start, json.loads(report)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    base, out = folder / "base", folder / "merged"
    # by another process: what a child is started from counts as its own highest resident size
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        parameters = pool.submit(write_base, base).result()
        adapters = pool.submit(write_adapters, base, folder).result()
    peak, seconds, report = run(adapters, out)
    record = {
        "schema": 1,
        "parameters": parameters,
        "adapters": ADAPTERS,
        "rank": RANK,
        "method": "ties",
        "peak_resident_gb": peak,
        "limit_gb": LIMIT_GB,
        "base_gb": sum(p.stat().st_size for p in base.glob("*.safetensors")) / 1e9,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "tensors_changed": report["gate"]["tensors_read_back"],
        "lost_in_rounding": report["lost_in_rounding"],
        "versions": versions(),
    }
    write_json(OUT, record)
    print(json.dumps(record, indent=1))
    return 0 if peak < LIMIT_GB else 4


if __name__ == "__main__":
    sys.exit(main())
