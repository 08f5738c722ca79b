"""Scoring a split: one by one, in batches, and with each picture's prompt computed once.

    python benchmarks/scoring.py                                    # tiny, the source task; 2 CPU cores
    python benchmarks/scoring.py --base smol-vlm --adapter DIR --val val.json --image_dir images --items 96

One process, arms in turn, the best of --rounds each. An arm is void unless its texts equal those of one by one.
One by one is `generate` on each item alone, KV cache and all, without likelihoods; the other arms compute the
reference answers' likelihoods as well, because a score needs them. Exit code 4 if the last arm misses
its target: 3x on tiny, 2x on another base.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vlmpeft.adapters.loading import load_adapter
from vlmpeft.base.loading import load_base, load_processor
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.data.datamodule import VLMData
from vlmpeft.evaluation.decoding import Decoded, Limits, WholePrompts
from vlmpeft.evaluation.prefix_cache import SharedPrefixes
from vlmpeft.evaluation.tower_cache import FeatureCache, Sample
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json

REFERENCE, OURS = "one by one", "shared prefixes"
LEAST_TINY, LEAST_OTHER = 3.0, 2.0


def read_samples(args: argparse.Namespace) -> tuple[list[list[Sample]], Limits]:
    """Batches as scoring takes them, of whole pictures up to --items; the longest answer is the limit."""
    data = VLMData(train=args.train, val=args.val, image_dir=args.image_dir)
    data.prepare(load_processor(BaseSpec(path=args.base)))
    items = data.dataset("val").items
    shown = sorted({str(item.conversation.images) for item in items})
    wanted = set(shown[: max(1, len(shown) * args.items // len(items))])
    data.eval_batch_size = args.batch_size
    samples = [
        sample
        for batch in data.scoring_loader("val")
        for sample in batch
        if str(sample[0].conversation.images) in wanted
    ]
    size = args.batch_size
    batches = [samples[i : i + size] for i in range(0, len(samples), size)]
    return batches, Limits(data.max_target_tokens, tuple(sorted(data.end_ids)), data.pad_id)


def arms(model: Any, limits: Limits) -> dict[str, Callable[[list[list[Sample]]], list[list[int]]]]:
    """Name -> what gives the token ids of every answer."""

    def one_by_one(batches: list[list[Sample]]) -> list[list[int]]:
        decoder = WholePrompts(model, limits)
        return [decoder._generate([sample])[0][0] for batch in batches for sample in batch]

    def batched(batches: list[list[Sample]]) -> list[list[int]]:
        return run(WholePrompts(model, limits, FeatureCache(model)), batches)

    def shared(batches: list[list[Sample]]) -> list[list[int]]:
        return run(SharedPrefixes(model, limits, FeatureCache(model)), batches)

    def run(decoder: Any, batches: list[list[Sample]]) -> list[list[int]]:
        found: list[Decoded] = []
        for batch in batches:
            found += decoder.decode(batch, [[] for _ in batch])
        return [one.ids for one in found]

    return {REFERENCE: one_by_one, "batches": batched, OURS: shared}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and agreement of every arm."""
    batches, limits = read_samples(args)
    model, _, components = load_base(BaseSpec(path=args.base, bits=Bits(language=args.bits)))
    if args.adapter:
        load_adapter(args.adapter, model, components)
    model.eval()
    seconds: dict[str, float] = {}
    answers: dict[str, list[list[int]]] = {}
    with torch.no_grad():
        for _ in range(args.rounds):
            for name, arm in arms(model, limits).items():
                start = time.perf_counter()
                answers[name] = arm(batches)
                seconds[name] = min(seconds.get(name, 1e9), time.perf_counter() - start)
    expected = answers[REFERENCE]
    return {
        "items": len(expected),
        "pictures": len({str(i.conversation.images) for b in batches for i, _ in b}),
        "tokens": sum(map(len, expected)),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "speed": {name: seconds[REFERENCE] / value for name, value in seconds.items()},
        "equal": {
            name: sum(a == b for a, b in zip(found, expected, strict=True))
            for name, found in answers.items()
        },
    }


def table(result: dict[str, Any], least: float) -> str:
    """Markdown; a void row shows no speed."""
    rows = ["| arm | items/s | equal texts | verdict |", "|---|---|---|---|"]
    for name, speed in result["speed"].items():
        is_equal = result["equal"][name] == result["items"]
        verdict = "parity" if is_equal else "void"
        if name == OURS and is_equal:
            verdict += f"; >= {least:g}x {'met' if speed >= least else 'missed'}"
        shown = f"{speed:.2f}x" if is_equal else "-"
        rows.append(
            f"| {name} | {shown} | {result['equal'][name]} of {result['items']} | {verdict} |"
        )
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--bits", default="fp32", help="of the language model")
    parser.add_argument("--adapter")
    parser.add_argument("--train", default="workbench:source", help="gives the longest answer")
    parser.add_argument("--val")
    parser.add_argument("--image_dir")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    result = measure(args)
    least = LEAST_TINY if args.base == "tiny" else LEAST_OTHER
    name = Path(args.base).name
    record = {
        "schema": 1,
        "benchmark": "scoring",
        "base": name,
        "bits": args.bits,
        "batch_size": args.batch_size,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "cpu_threads": torch.get_num_threads(),
        **result,
        "table": table(result, least),
    }
    write_json(args.output or Path(f"results/benchmarks/scoring-{name}.json"), record)
    print(record["table"])
    is_equal = result["equal"][OURS] == result["items"]
    return 0 if is_equal and result["speed"][OURS] >= least else 4


if __name__ == "__main__":
    sys.exit(main())
