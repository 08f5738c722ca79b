"""BibTeX of the methods that a study uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any


@dataclass(frozen=True)
class Paper:
    """A paper; without a venue it is a preprint."""

    authors: str
    title: str
    year: int
    arxiv: str
    venue: str = ""

    def bibtex(self, key: str) -> str:
        """Its entry."""
        kind, where = ("inproceedings", [("booktitle", self.venue)]) if self.venue else ("misc", [])
        fields = [("author", self.authors), ("title", f"{{{self.title}}}"), *where]
        fields += [("year", str(self.year)), ("eprint", self.arxiv), ("archivePrefix", "arXiv")]
        lines = [f"  {name} = {{{value}}}," for name, value in fields]
        return "\n".join([f"@{kind}{{{key},", *(_wrapped(line) for line in lines), "}"])


def _wrapped(line: str) -> str:
    return "\n".join(wrap(line, 78, subsequent_indent="    ", break_on_hyphens=False))


_ICLR = "International Conference on Learning Representations"
_ICML = "International Conference on Machine Learning"
_NEURIPS = "Advances in Neural Information Processing Systems"
_ACL = "Proceedings of the Annual Meeting of the Association for Computational Linguistics"
_HE = "He, Pengcheng"

PAPERS = {
    "hu2022lora": Paper(
        "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean and "
        "Wang, Lu and Chen, Weizhu",
        "LoRA: Low-Rank Adaptation of Large Language Models", 2022, "2106.09685", _ICLR,
    ),
    "liu2024dora": Paper(
        "Liu, Shih-Yang and Wang, Chien-Yi and Yin, Hongxu and Molchanov, Pavlo and Wang, Yu-Chiang Frank and "
        "Cheng, Kwang-Ting and Chen, Min-Hung",
        "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, "2402.09353", _ICML,
    ),
    "dettmers2023qlora": Paper(
        "Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke",
        "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, "2305.14314", _NEURIPS,
    ),
    "dettmers2022llmint8": Paper(
        "Dettmers, Tim and Lewis, Mike and Belkada, Younes and Zettlemoyer, Luke",
        "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022, "2208.07339",
    ),
    "zhang2023adalora": Paper(
        f"Zhang, Qingru and Chen, Minshuo and Bukharin, Alexander and {_HE} and Cheng, Yu and Chen, Weizhu and Zhao, Tuo",
        "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023, "2303.10512", _ICLR,
    ),
    "kopiczko2024vera": Paper(
        "Kopiczko, Dawid J. and Blankevoort, Tijmen and Asano, Yuki M.",
        "VeRA: Vector-based Random Matrix Adaptation", 2024, "2310.11454", _ICLR,
    ),
    "liu2022ia3": Paper(
        "Liu, Haokun and Tam, Derek and Muqeeth, Mohammed and Mohta, Jay and Huang, Tenghao and Bansal, Mohit and "
        "Raffel, Colin",
        "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022, "2205.05638", _NEURIPS,
    ),
    "houlsby2019adapters": Paper(
        "Houlsby, Neil and Giurgiu, Andrei and Jastrzebski, Stanislaw and Morrone, Bruna and de Laroussilhe, Quentin and "
        "Gesmundo, Andrea and Attariyan, Mona and Gelly, Sylvain",
        "Parameter-Efficient Transfer Learning for NLP", 2019, "1902.00751", _ICML,
    ),
    "pfeiffer2021adapterfusion": Paper(
        r"Pfeiffer, Jonas and Kamath, Aishwarya and R{\"u}ckl{\'e}, Andreas and Cho, Kyunghyun and Gurevych, Iryna",
        "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", 2021, "2005.00247",
        "Proceedings of the Conference of the European Chapter of the Association for Computational Linguistics",
    ),
    "he2022unified": Paper(
        "He, Junxian and Zhou, Chunting and Ma, Xuezhe and Berg-Kirkpatrick, Taylor and Neubig, Graham",
        "Towards a Unified View of Parameter-Efficient Transfer Learning", 2022, "2110.04366", _ICLR,
    ),
    "lester2021prompt": Paper(
        "Lester, Brian and Al-Rfou, Rami and Constant, Noah",
        "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021, "2104.08691",
        "Proceedings of the Conference on Empirical Methods in Natural Language Processing",
    ),
    "li2021prefix": Paper(
        "Li, Xiang Lisa and Liang, Percy",
        "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021, "2101.00190", _ACL,
    ),
    "jia2022vpt": Paper(
        "Jia, Menglin and Tang, Luming and Chen, Bor-Chun and Cardie, Claire and Belongie, Serge and Hariharan, Bharath and "
        "Lim, Ser-Nam",
        "Visual Prompt Tuning", 2022, "2203.12119", "European Conference on Computer Vision",
    ),
    "benzaken2022bitfit": Paper(
        "Ben Zaken, Elad and Goldberg, Yoav and Ravfogel, Shauli",
        "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", 2022, "2106.10199", _ACL,
    ),
    "zhao2024layernorm": Paper(
        "Zhao, Bingchen and Tu, Haoqin and Wei, Chen and Mei, Jieru and Xie, Cihang",
        "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", 2024, "2312.11420", _ICLR,
    ),
    "meng2024pissa": Paper(
        "Meng, Fanxu and Wang, Zhaohui and Zhang, Muhan",
        "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models", 2024, "2404.02948", _NEURIPS,
    ),
    "buyukakyuz2024olora": Paper(
        r"B{\"u}y{\"u}kaky{\"u}z, Kerim",
        "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", 2024, "2406.01775",
    ),
    "li2024loftq": Paper(
        f"Li, Yixiao and Yu, Yifan and Liang, Chen and {_HE} and Karampatziakis, Nikos and Chen, Weizhu and Zhao, Tuo",
        "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", 2024, "2310.08659", _ICLR,
    ),
    "kalajdzievski2023rslora": Paper(
        "Kalajdzievski, Damjan",
        "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023, "2312.03732",
    ),
    "hayou2024loraplus": Paper(
        "Hayou, Soufiane and Ghosh, Nikhil and Yu, Bin",
        "LoRA+: Efficient Low Rank Adaptation of Large Models", 2024, "2402.12354", _ICML,
    ),
    "wortsman2022soups": Paper(
        "Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Ya and Roelofs, Rebecca and Gontijo-Lopes, Raphael and "
        "Morcos, Ari S. and Namkoong, Hongseok and Farhadi, Ali and Carmon, Yair and Kornblith, Simon and Schmidt, Ludwig",
        "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time",
        2022, "2203.05482", _ICML,
    ),
    "ilharco2023arithmetic": Paper(
        "Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Schmidt, Ludwig and Hajishirzi, Hannaneh and "
        "Farhadi, Ali",
        "Editing Models with Task Arithmetic", 2023, "2212.04089", _ICLR,
    ),
    "yadav2023ties": Paper(
        "Yadav, Prateek and Tam, Derek and Choshen, Leshem and Raffel, Colin and Bansal, Mohit",
        "TIES-Merging: Resolving Interference When Merging Models", 2023, "2306.01708", _NEURIPS,
    ),
    "yu2024dare": Paper(
        "Yu, Le and Yu, Bowen and Yu, Haiyang and Huang, Fei and Li, Yongbin",
        "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch", 2024, "2311.03099", _ICML,
    ),
    "davari2024breadcrumbs": Paper(
        "Davari, MohammadReza and Belilovsky, Eugene",
        "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", 2024, "2312.06795",
        "European Conference on Computer Vision",
    ),
    "deep2024della": Paper(
        "Deep, Pala Tej and Bhardwaj, Rishabh and Poria, Soujanya",
        "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling", 2024, "2406.11617",
    ),
}  # fmt: skip
_OF_STRATEGIES = {
    "LoRA": ["hu2022lora"], "DoRA": ["liu2024dora"], "AdaLoRA": ["zhang2023adalora"], "VeRA": ["kopiczko2024vera"],
    "IA3": ["liu2022ia3"], "PrefixTuning": ["li2021prefix"], "BitFit": ["benzaken2022bitfit"],
    "LayerNormTuning": ["zhao2024layernorm"],
}  # fmt: skip
# strategy's knob and its value -> what beside the strategy's own paper
_OF_KNOBS = {
    ("rslora", True): "kalajdzievski2023rslora",
    ("init", "pissa"): "meng2024pissa",
    ("init", "olora"): "buyukakyuz2024olora",
    ("init", "loftq"): "li2024loftq",
    ("style", "pfeiffer"): "pfeiffer2021adapterfusion",
    ("style", "houlsby"): "houlsby2019adapters",
    ("style", "parallel"): "he2022unified",
    ("rule", "average"): "wortsman2022soups",
    ("rule", "linear"): "wortsman2022soups",
    ("rule", "task_arithmetic"): "ilharco2023arithmetic",
    ("rule", "breadcrumbs"): "davari2024breadcrumbs",
    ("rule", "della"): "deep2024della",
}
_OF_BITS = {"nf4": "dettmers2023qlora", "fp4": "dettmers2023qlora", "int8": "dettmers2022llmint8"}


def citations(component: str, strategy: str, knobs: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the papers behind a strategy with these knobs on a component.

    Args:
        component: vision, projector or language.
        strategy: its short name.
        knobs: name -> value.
    """
    yield from _OF_STRATEGIES.get(strategy, ())
    if strategy == "PromptTuning":
        yield "jia2022vpt" if component == "vision" else "lester2021prompt"
    for knob, value in knobs.items():
        if isinstance(value, (str, bool)) and (knob, value) in _OF_KNOBS:
            yield _OF_KNOBS[knob, value]
    if (knobs.get("lora_plus_ratio") or 1) != 1:
        yield "hayou2024loraplus"
    rule = str(knobs.get("rule", ""))
    yield from ["yu2024dare"] if rule.startswith("dare") else []
    yield from ["yadav2023ties"] if rule.endswith("ties") else []


def citations_of_bits(widths: Iterable[str]) -> Iterator[str]:
    """Keys of the papers behind quantized weights."""
    for width in widths:
        if width in _OF_BITS:
            yield _OF_BITS[width]


def bibtex(keys: Iterable[str]) -> str:
    """The entries, each once, in the order of their keys."""
    return "\n\n".join(PAPERS[key].bibtex(key) for key in sorted({*keys}))
