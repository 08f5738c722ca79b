#!/usr/bin/env python3
"""Published parameter counts beside ours: results/published_reference/{table.json,README.md}.

python scripts/published.py [--out DIR]      # seconds, no weights, deterministic

Where a vision-language config exists, the plan is attached to its model on the meta device by `vlmpeft.strategies.plan.attach`;
where none does (GPT-3, CLIP-BART, methods the project lacks), the count is a formula. Percent is
100 * trainable / (base + added).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops
from vlmpeft.strategies.plan import Plan, attach

OUT = Path(__file__).parent.parent / "results" / "published_reference"
DORA = "DoRA (Liu et al. 2024), LLaVA-1.5-7B"
ZHOU = "PEFT-MLLM (Zhou et al. 2024), LLaVA-7B, vocabulary 32000"
VL_ADAPTER = "VL-Adapter (Sung et al. 2022), CLIP-BART"
GPT_3 = "LoRA (Hu et al. 2021), GPT-3: 96 layers, d = 12288"
PROJECTOR = 1024 * 4096 + 4096 + 4096 * 4096 + 4096  # LLaVA-1.5's two Linears and their biases
ZHOU_BASE = (
    7_062_902_784  # LLaVA-1.5-7B without the 64 rows that llava-hf pads both vocabularies with
)


@dataclass(frozen=True)
class Row:
    """One published number and ours.

    Args:
        source: paper, model.
        row: what is trained.
        published: as printed there, "4.61 %" or "37.7 M".
        trainable: ours.
        whole: base and added; None where the paper gives a count only.
        how: attach, or closed form.
        formula: what was attached, or what was computed.
    """

    source: str
    row: str
    published: str
    trainable: int
    whole: int | None
    how: str
    formula: str

    @property
    def ours(self) -> float:
        """In the unit of the published number, with more digits."""
        if self.whole is None:
            return round(self.trainable / 1e6, 4)
        return round(100 * self.trainable / self.whole, 4)

    @property
    def difference(self) -> float:
        return round(self.ours - float(self.published.split()[0]), 4)

    def to_dict(self) -> dict:
        return asdict(self) | {"ours": self.ours, "difference": self.difference}


@cache
def llava_7b(vocab_size: int) -> tuple:
    """(model, components) of LLaVA-1.5-7B on the meta device."""
    declare_torchvision_ops()
    from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

    from vlmpeft.base.components import find_components

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(vocab_size=vocab_size, hidden_size=4096, intermediate_size=11008)
    config = LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return model, find_components(model)


def attached(source: str, row: str, published: str, vocab_size: int, plan: Plan) -> Row:
    """A row whose count is what `attach` makes trainable."""
    on_model = attach(plan, *llava_7b(vocab_size))
    summary = on_model.summary()
    on_model.detach()
    whole = summary["total"] + summary["added"] if published.endswith("%") else None
    said = {c: s for c, s in plan.to_dict().items() if s[0]["class_path"] != "Frozen"}
    formula = ", ".join(f"{c}: {s[0]['class_path']}{_rank(s[0])}" for c, s in said.items())
    return Row(source, row, published, summary["trainable"], whole, "attach", formula)


def _rank(entry: dict) -> str:
    return f" r={entry['init_args']['r']}" if "r" in entry["init_args"] else ""


def attached_rows() -> list[Row]:
    from vlmpeft.strategies import IA3, DoRA, Full, LoRA, PrefixTuning

    lora, full, prefix = LoRA(r=128), Full(), PrefixTuning(n=20)
    return [
        attached(
            DORA,
            "LoRA r=128 on 7 linears, projector",
            "4.61 %",
            32064,
            Plan(language=lora, projector=full),
        ),
        attached(
            DORA,
            "DoRA r=128 on 7 linears, projector",
            "4.63 %",
            32064,
            Plan(language=DoRA(r=128), projector=full),
        ),
        attached(ZHOU, "LoRA r=128", "4.332 %", 32000, Plan(language=lora)),
        attached(
            ZHOU,
            "LoRA r=128, connector",
            "4.616 %",
            32000,
            Plan(language=lora, projector=full),
        ),
        attached(ZHOU, "Prefix n=20", "0.074 %", 32000, Plan(language=prefix)),
        attached(
            ZHOU, "Prefix n=20, connector", "0.371 %", 32000, Plan(language=prefix, projector=full)
        ),
        attached(ZHOU, "IA3, connector", "0.306 %", 32000, Plan(language=IA3(), projector=full)),
        attached(
            "VeRA (Kopiczko et al. 2024) and QLoRA (Dettmers et al. 2023), 7B LLaMA",
            "LoRA r=64",
            "159.9 M",
            32064,
            Plan(language=LoRA(r=64)),
        ),
    ]


def closed(
    source: str, row: str, published: str, trainable: int, whole: int | None, formula: str
) -> Row:
    return Row(source, row, published, trainable, whole, "closed form", formula)


def zhou_rows() -> list[Row]:
    """Methods on the language model of LLaVA-7B; the connector is trained or not."""
    adapter = 32 * 3 * 2 * 4096 * 256
    rows = []
    for name, added, formula, alone, both in (
        ("Adapter b=256", adapter, "32 layers x 3 x 2 d b, no bias", "2.771 %", "3.060 %"),
    ):
        whole = ZHOU_BASE + added
        rows += [
            closed(ZHOU, name, alone, added, whole, formula),
            closed(
                ZHOU, f"{name}, connector", both, added + PROJECTOR, whole, f"{formula} + connector"
            ),
        ]
    return rows


def vl_adapter_rows() -> list[Row]:
    """BART-base behind a projection of CLIP's 2048-wide grid features; the parts below add up to the printed shares.

    Adapters (d / 8 wide, 2 in each of 6 encoder layers, 3 in each of 6 decoder layers) train beside the norms; LoRA
    (r = 128 on q and v of 18 attentions) beside the biases; both beside the visual embedding.
    """
    d, layers = 768, 6
    linear, norm = d * d + d, 2 * d
    feedforward = 2 * 4 * d * d + 4 * d + d
    encoder = layers * (4 * linear + feedforward + 2 * norm)
    decoder = layers * (8 * linear + feedforward + 3 * norm)
    bart = 50265 * d + 2 * 1026 * d + encoder + decoder + 2 * norm
    visual = 2048 * d + d + norm + 5 * d + d + norm + 2 * d  # features, boxes, image order
    norms = (layers * (2 + 3) + 2) * norm
    biases = (layers * (4 + 4 + 1 + 2) + layers * (8 + 4 + 1 + 3) + 2) * d
    adapters = layers * (2 + 3) * (2 * d * d // 8 + d // 8 + d)
    lora = layers * 3 * 2 * 128 * 2 * d
    rows = (
        ("single adapter", "4.18 %", adapters, norms, "30 (2 d b + b + d), b = d / 8; norms"),
        ("single LoRA", "5.93 %", lora, biases, "36 x 2 d r, r = 128; biases"),
    )
    return [
        closed(
            VL_ADAPTER,
            name,
            published,
            added + beside + visual,
            bart + visual + added,
            f"{formula}; visual embedding",
        )
        for name, published, added, beside, formula in rows
    ]


def gpt_3_rows() -> list[Row]:
    layers, d = 96, 12288
    counts = {
        "LoRA on q, v": ("2 L 2 d r", lambda r: 2 * layers * 2 * d * r, ("4.7 M", "37.7 M")),
        "Adapter-H": (
            "2 L (2 d r + r + d)",
            lambda r: 2 * layers * (2 * d * r + r + d),
            ("7.1 M", "40.1 M"),
        ),
    }
    return [
        closed(GPT_3, f"{name}, r={r}", published, count(r), None, formula)
        for name, (formula, count, printed) in counts.items()
        for r, published in zip((1, 8), printed, strict=True)
    ]


def rows() -> list[Row]:
    return [*attached_rows(), *zhou_rows(), *vl_adapter_rows(), *gpt_3_rows()]


def readme(table: list[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "# Published parameter counts, computed again",
        "",
        "Written by `python scripts/published.py`; `table.json` has the same rows. `attach`: the plan was attached to the",
        "model on the meta device. `closed form`: no config of that model, or no such strategy, exists here. Percent is",
        "100 trainable / (base + added); papers round or truncate, so a difference below the last printed digit is none.",
        "",
        "| source | row | published | ours | trainable | base + added | how | formula | difference |",
        "|---|---|---:|---:|---:|---:|---|---|---:|",
    ]
    for row in table:
        unit = row.published.split()[1]
        cells = [row.source, row.row, row.published, f"{row.ours:.4f} {unit}"]
        whole = f"{row.whole:,}" if row.whole else "-"
        cells += [f"{row.trainable:,}", whole, row.how, row.formula, f"{row.difference:+.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def write(out: Path) -> None:
    table = rows()
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(json.dumps([row.to_dict() for row in table], indent=1) + "\n")
    (out / "README.md").write_text(readme(table))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    write(parser.parse_args().out)
