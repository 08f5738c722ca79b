#!/usr/bin/env python3
"""Train the embedded base `tiny` from nothing: a small LLaVA over 64 px scenes of tools and parts.

    python scripts/train_tiny.py --out vlmpeft/base/tiny      # or: make tiny; CPU

In call order: a byte-level BPE on source-task text; a warm-up in which tower and projector learn to say
what is in each patch's cell; then fresh conversations about drawn scenes, in
STAGES. All seeded. The scores per
kind go into the folder's README.md and scores.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from tiny.architecture import build_model, build_processor, build_tokenizer
from tiny.conversations import Conversations, corpus, draw_pool
from tiny.scores import score, write_card
from tiny.training import STAGES, train, warm_up_eyes

from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eyes_steps", type=int, default=800)
    parser.add_argument("--first_stage", type=int, default=0, help="go on from --out with this one")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--scenes", type=int, default=32_000)
    parser.add_argument("--score_count", type=int, default=1000)
    parser.add_argument("--share", type=float, default=1.0, help="of every stage, for a quick look")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    declare_torchvision_ops()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(corpus(args.seed))
    processor, model = build_processor(tokenizer), build_model(tokenizer)
    scenes, pixels = draw_pool(args.seed, args.scenes)
    if args.first_stage:
        model = type(model).from_pretrained(args.out)
        model.train()
    else:
        warm_up_eyes(model, tokenizer, scenes, pixels, args.eyes_steps)
    args.out.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(args.out)

    def report() -> dict[str, float]:
        model.save_pretrained(args.out)
        return score(model, processor, "val", 100)

    stages = [replace(stage, steps=max(1, round(args.share * stage.steps))) for stage in STAGES]
    for number, stage in enumerate(stages[args.first_stage :], args.first_stage):
        conversations = Conversations(
            tokenizer, scenes, pixels, seed=args.seed + number, batch_size=args.batch_size
        )
        conversations.mixture = stage.mixture
        print(f"stage {number}", flush=True)
        train(model, conversations, stage, report)
    model.save_pretrained(args.out)
    scores = score(model, processor, "test", args.score_count)
    steps = sum(stage.steps for stage in stages)
    write_card(args.out, scores, model, vars(args) | {"steps": steps})
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
