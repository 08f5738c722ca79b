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


def card(report: dict[str, Any], plan: dict[str, Any]) -> str:
    """Markdown with the hub's front matter: what it is, how it is loaded, what was measured.

    Args:
        report: of the export.
        plan: of the adapter, as its manifest has it.
    """
    base = report["base"]["id"]
    return (
        "\n\n".join(
            [
                _front_matter(base, report["to"]),
                f"# {base}, adapted ({report['to']})",
                f"Base `{base}`, fingerprint `{report['base']['fingerprint']}`. What was trained:",
                _plan(plan),
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
    head = "| route | max delta logits | mean KL | same argmax | same text |\n| --- | --- | --- | --- | --- |"
    rows = [
        f"| {row['route']} | {row['max_logit']:.2e} | {row['mean_kl']:.2e} | {row['argmax_agreement']:.3f} | {row['text_agreement']:.3f} |"
        for row in report["routes"]
    ]
    return [
        f"Answers beside those of the adapter attached as it was trained; `{report['gate']['exported']}` is this folder, "
        "reloaded from disk.",
        "\n".join([head, *rows]),
    ]


def whole_merge_card(report: dict[str, Any]) -> str:
    """The README.md of several adapters merged into one checkpoint.

    Args:
        report: of the merge.
    """
    base, gate, paper = report["base"]["id"], report["gate"], report["paper"]
    names = "\n".join(
        f"- `{one['name']}`, tensors {one['tensors_sha256']}" for one in report["adapters"]
    )
    parts = [
        _front_matter(base, "merged"),
        f"# {base}, with {len(report['adapters'])} adapters merged by {report['recipe']['method']}",
        f"{paper[0]}, {paper[1]}",
        f"Base `{base}`, fingerprint `{report['base']['fingerprint']}`. Adapters:",
        names,
        _LOAD["merged"],
        f"{gate['tensors_read_back']} tensors were changed and read back, {gate['bytes_of_base_unchanged']} bytes are the base's. "
        f"Storing W + dW in {report['width']} lost {100 * report['lost_in_rounding']:.3g} % of the norm of dW.",
    ]
    if "max_logit" in gate:
        parts.append(
            f"Beside the merge attached to the base, {gate['samples']} answers: max delta logits {gate['max_logit']:.2e}, mean KL "
            f"{gate['mean_kl']:.2e}, same argmax {gate['argmax_agreement']:.3f}, same text {gate['text_agreement']:.3f}."
        )
    return "\n\n".join([*parts, *(f"Note: {note}." for note in report["notes"])]) + "\n"
