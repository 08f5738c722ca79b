"""Short names of strategies and metrics: what a config or a manifest says -> the class."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection
from typing import Any

from vlmpeft.runtime.errors import UserError, did_you_mean

STRATEGIES = {
    "Frozen": "vlmpeft.strategies.fixed.Frozen",
    "Full": "vlmpeft.strategies.fixed.Full",
    "LoRA": "vlmpeft.strategies.lora.LoRA",
    "DoRA": "vlmpeft.strategies.lora.DoRA",
    "AdaLoRA": "vlmpeft.strategies.adalora.AdaLoRA",
    "VeRA": "vlmpeft.strategies.vera.VeRA",
    "IA3": "vlmpeft.strategies.ia3.IA3",
    "BottleneckAdapter": "vlmpeft.strategies.bottleneck.BottleneckAdapter",
    "PromptTuning": "vlmpeft.strategies.prompt.PromptTuning",
    "PrefixTuning": "vlmpeft.strategies.prefix.PrefixTuning",
    "BitFit": "vlmpeft.strategies.selected.BitFit",
    "LayerNormTuning": "vlmpeft.strategies.selected.LayerNormTuning",
    "LastLayers": "vlmpeft.strategies.selected.LastLayers",
    "Dense": "vlmpeft.strategies.dense.Dense",
    "Merged": "vlmpeft.merging.strategy.Merged",
    "Peft": "vlmpeft.strategies.peft_any.Peft",
}
METRICS = {
    "ExactMatch": "vlmpeft.evaluation.metrics.text.ExactMatch",
    "TokenF1": "vlmpeft.evaluation.metrics.text.TokenF1",
    "Contains": "vlmpeft.evaluation.metrics.text.Contains",
    "Bleu": "vlmpeft.evaluation.metrics.ngrams.Bleu",
    "RougeL": "vlmpeft.evaluation.metrics.ngrams.RougeL",
    "CiderD": "vlmpeft.evaluation.metrics.ngrams.CiderD",
    "VqaAccuracy": "vlmpeft.evaluation.metrics.vqa.VqaAccuracy",
    "Anls": "vlmpeft.evaluation.metrics.vqa.Anls",
    "RelaxedAccuracy": "vlmpeft.evaluation.metrics.vqa.RelaxedAccuracy",
    "NumericError": "vlmpeft.evaluation.metrics.vqa.NumericError",
    "Perplexity": "vlmpeft.evaluation.metrics.likelihood.Perplexity",
    "ChoiceAccuracy": "vlmpeft.evaluation.metrics.likelihood.ChoiceAccuracy",
    "ChanceCorrected": "vlmpeft.evaluation.metrics.chance.ChanceCorrected",
    "JsonFields": "vlmpeft.evaluation.metrics.json_fields.JsonFields",
}


def resolve(name: str, names: dict[str, str]) -> Any:
    """The class behind a short name of `names`, or behind a dotted path of the user's own.

    Raises:
        UserError: neither; with the closest short name.
    """
    short = own_name(name, names)  # also of a path that version 0.1 had
    path = names[short] if short else name
    module, _, attribute = path.rpartition(".")
    if not module:
        raise UserError(f"unknown name {name!r}.{did_you_mean(name, names)}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{name} cannot be imported: {error}") from error


def own_name(name: str, names: Collection[str]) -> str | None:
    """The short name of a class of ours, of whatever path inside this package; None of any other class.

    >>> own_name("LoRA", STRATEGIES), own_name("vlmpeft.LoRA", STRATEGIES), own_name("peft.LoRA", STRATEGIES)
    ('LoRA', 'LoRA', None)
    """
    module, _, short = name.rpartition(".")
    is_ours = module in ("", "vlmpeft") or module.startswith("vlmpeft.")
    return short if is_ours and short in names else None


def saved_class(name: str, names: dict[str, str], kind: type, flag: str) -> Any:
    """The class behind a name that was read from an adapter, a record or a checkpoint.

    Those files may come from anywhere, so a name in them imports and calls nothing: it stands for a class of ours in
    `names`, or for a subclass of `kind` that the user has imported already.

    Args:
        name: a short name or a dotted path.
        names: short name -> dotted path of our own classes.
        kind: what the class has to be.
        flag: the option that names a class of the user's own, for the message.

    Raises:
        UserError: neither; with what to do if the class is the user's own.
    """
    if short := own_name(name, names):
        return resolve(short, names)
    module, _, attribute = name.rpartition(".")
    loaded = sys.modules.get(module)
    cls = vars(loaded).get(attribute) if loaded else None  # getattr could import
    if isinstance(cls, type) and issubclass(cls, kind):
        return cls
    if not module:
        raise UserError(f"unknown name {name!r}.{did_you_mean(name, names)}")
    raise UserError(
        f"{name!r} is none of vlmpeft's own classes, and a name in a file imports nothing; if you know this code and "
        f"trust it, add {flag} {name}"
    )


def import_all(names: dict[str, str]) -> None:
    """Import what short names stand for: a parser knows a class by its short name once it is imported."""
    for name in names:
        resolve(name, names)


def short_name(cls: type, names: dict[str, str]) -> str:
    """The short name of a registered class, else its dotted path: the inverse of `resolve`."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    return next((name for name, known in names.items() if known == path), path)
