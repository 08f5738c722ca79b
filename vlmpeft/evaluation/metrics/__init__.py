"""Scores of a generated answer against the expected ones.

In: answers of a model, each with its references. Out: one number a split, or several.
May import: runtime and the JSON values and schemas of data.
"""

from vlmpeft.data.json_schema import load_schema, schema_violations
from vlmpeft.evaluation.metrics.base import Answer, TextMetric
from vlmpeft.evaluation.metrics.build import build_metric
from vlmpeft.evaluation.metrics.chance import ChanceCorrected
from vlmpeft.evaluation.metrics.json_fields import JsonFields
from vlmpeft.evaluation.metrics.likelihood import ChoiceAccuracy, Perplexity
from vlmpeft.evaluation.metrics.ngrams import Bleu, CiderD, RougeL
from vlmpeft.evaluation.metrics.text import Contains, ExactMatch, TokenF1
from vlmpeft.evaluation.metrics.vqa import Anls, NumericError, RelaxedAccuracy, VqaAccuracy

__all__ = [
    "Anls",
    "Answer",
    "Bleu",
    "ChanceCorrected",
    "ChoiceAccuracy",
    "CiderD",
    "Contains",
    "ExactMatch",
    "JsonFields",
    "NumericError",
    "Perplexity",
    "RelaxedAccuracy",
    "RougeL",
    "TextMetric",
    "TokenF1",
    "VqaAccuracy",
    "build_metric",
    "load_schema",
    "schema_violations",
]
