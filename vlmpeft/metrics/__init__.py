"""Scores of a generated answer against the expected ones."""

from vlmpeft.data.json_schema import load_schema, schema_violations
from vlmpeft.metrics.base import Answer, TextMetric
from vlmpeft.metrics.build import build_metric
from vlmpeft.metrics.chance import ChanceCorrected
from vlmpeft.metrics.json_fields import JsonFields
from vlmpeft.metrics.likelihood import ChoiceAccuracy, Perplexity
from vlmpeft.metrics.ngrams import Bleu, CiderD, RougeL
from vlmpeft.metrics.text import Contains, ExactMatch, TokenF1
from vlmpeft.metrics.vqa import Anls, NumericError, RelaxedAccuracy, VqaAccuracy

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
