"""The manifest of an adapter folder: what a file from elsewhere says, checked before anything is built from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmpeft.runtime.errors import UserError

OWN_WEIGHTS = "adapter.safetensors"
TEMPLATE = "chat_template.jinja"
MANIFEST = "manifest.json"
_LONGEST_REASON = 200  # characters

_BITS = {"enum": ["auto", "fp32", "bf16", "fp16", "nf4", "fp4", "int8"]}
_STRATEGY = {
    "type": "object",
    "required": ["class_path", "init_args"],
    "properties": {"class_path": {"type": "string"}, "init_args": {"type": "object"}},
    "additionalProperties": False,
}
_STRATEGIES = {"type": "array", "items": _STRATEGY}
_NULL_OR_COUNT = {"type": ["integer", "null"], "minimum": 1}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["plan", "base", "tensors"],
    "properties": {
        "plan": {
            "type": "object",
            "properties": dict.fromkeys(("vision", "projector", "language"), _STRATEGIES),
            "additionalProperties": False,
        },
        "base": {
            "type": "object",
            "required": ["id", "fingerprint", "bits"],
            "properties": {
                "id": {"type": "string", "minLength": 1},
                "revision": {"type": ["string", "null"]},
                "fingerprint": {"type": "string"},
                "bits": {
                    "type": "object",
                    "required": ["vision", "projector", "language"],
                    "properties": dict.fromkeys(("vision", "projector", "language"), _BITS)
                    | {
                        "double_quant": {"type": "boolean"},
                        "compute": {"enum": ["auto", "fp32", "bf16", "fp16"]},
                    },
                },
            },
        },
        "tensors": {
            "type": "object",
            "additionalProperties": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0},
            },
        },
        "max_pixels": _NULL_OR_COUNT,
        "decoding": {
            "type": ["object", "null"],
            "required": ["max_new_tokens", "end_ids"],
            "properties": {
                "max_new_tokens": {"type": "integer", "minimum": 1},
                "end_ids": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            },
        },
    },
}


def find_manifest(folder: str | Path) -> Path:
    """The manifest's file.

    Raises:
        UserError: there is none, so the folder is no adapter.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"adapter {folder}: there is no {MANIFEST}; give a folder that `fit` wrote")
    return path


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of an adapter folder, of the form that `fit` and `merge` write.

    Raises:
        UserError: no such folder, or a manifest that vlmpeft did not write.
    """
    path = find_manifest(folder)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"adapter {folder}: {MANIFEST} is not valid JSON: {error}") from error
    if problem := _problem(manifest):
        raise UserError(
            f"adapter {folder}: {MANIFEST} {problem}; give a folder that `fit` wrote, or copy it again"
        )
    return manifest


def _problem(manifest: Any) -> str:
    """The first way in which a manifest is none; empty if it is one."""
    from jsonschema import Draft202012Validator

    error = next(iter(Draft202012Validator(SCHEMA).iter_errors(manifest)), None)
    if error is None:
        return ""
    if error.validator == "required" and isinstance(error.instance, dict):
        lacks = [key for key in error.validator_value if key not in error.instance]
        where = error.json_path.removeprefix("$").removeprefix(".")
        return f"lacks {', '.join(lacks)}" + (f" in {where}" if where else "")
    reason = " ".join(error.message.split())[:_LONGEST_REASON]
    return f"is of another form: {error.json_path}: {reason}"
