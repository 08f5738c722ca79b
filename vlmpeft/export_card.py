"""The README.md of an exported folder."""

from __future__ import annotations

import json
from typing import Any

_LOAD = {
    "merged": """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("PATH")
processor = AutoProcessor.from_pretrained("PATH")
```""",
    "peft": """```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({base})
model = PeftModel.from_pretrained(base, "PATH")
processor = AutoProcessor.from_pretrained("PATH")
```""",
}


def card(report: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Markdown with the hub's front matter: what it is, how it is loaded, what was measured.

    Args:
        report: of the export.
        manifest: of the adapter.
    """
    base = report["base"]["id"]
    return (
        "\n\n".join(
            [
                _front_matter(base, report["to"]),
                f"# {base}, adapted ({report['to']})",
                f"Base `{base}`, fingerprint `{report['base']['fingerprint']}`. What was trained:",
                _plan(manifest["plan"]),
                _loading(report),
                *_measured(report),
                *[f"Note: {note}." for note in report["notes"]],
            ]
        )
        + "\n"
    )


def _front_matter(base: str, to: str) -> str:
    library = "transformers" if to == "merged" else "peft"
    lines = [f"library_name: {library}", "pipeline_tag: image-text-to-text", "tags: [vlmpeft]"]
    if base.count("/") == 1 and not base.startswith((".", "/")):
        lines.insert(0, f"base_model: {base}")
    return "\n".join(["---", *lines, "---"])


def _plan(plan: dict[str, Any]) -> str:
    rows = [
        f"| {component} | {entry['class_path']} | {', '.join(f'{k} {v}' for k, v in entry['init_args'].items() if v is not None)} |"
        for component, entries in plan.items()
        for entry in entries
    ]
    return "\n".join(["| component | strategy | settings |", "| --- | --- | --- |", *rows])


def _loading(report: dict[str, Any]) -> str:
    if report["to"] == "vllm":
        return f"```\n{report['vllm']['serve']}\n```"
    return _LOAD[report["to"]].replace("{base}", json.dumps(report["base"]["id"]))


def _measured(report: dict[str, Any]) -> list[str]:
    if "routes" not in report:
        return []
    head = "| route | max delta logits | mean KL | same argmax | same text |\n| --- | --- | --- | --- | --- |"
    rows = [
        f"| {row['route']} | {row['max_logit']:.2e} | {row['mean_kl']:.2e} | {row['argmax_agreement']:.3f} | {row['text_agreement']:.3f} |"
        for row in report["routes"]
    ]
    gate = report["gate"]
    return [
        f"Answers beside those of the adapter attached as it was trained. Written: {gate['exported']}, as reloaded from disk.",
        "\n".join([head, *rows]),
    ]
