"""Every verb as a typed function: its options, its help, and where its work is done.

Nothing heavy is imported before a verb's own work: a wrong option, name or path is told before torch is.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from vlmpeft.adapters.manifest import find_manifest
from vlmpeft.cli.command_line import Verb, declare_torchvision, given
from vlmpeft.cli.early_check import SPLITS
from vlmpeft.cli.known_keys import choices_of
from vlmpeft.cli.study_verbs import STUDY_VERBS
from vlmpeft.runtime.errors import UserError, did_you_mean

OWN_PROCESS = "VLMPEFT_OWN_PROCESS"  # set by __main__: the process that runs one verb and ends
Width = Literal["auto", "fp32", "bf16", "fp16", "nf4", "fp4", "int8"]


# -- of a run that is not run ----------------------------------------------------------------------


def plan(
    run_args: list[str], for_: Literal["peft", "vllm"] | None = None, json: bool = False
) -> None:
    """What a config trains: strategies, modules, parameters, bits and learning rates by component. No weights are loaded.

    Args:
        run_args: keys of a run.
        for_: also whether this engine can load what the plan will leave; exit code 4 if not.
        json: print JSON and nothing else.
    """
    declare_torchvision()
    if os.environ.get(OWN_PROCESS) == str(os.getpid()):
        from vlmpeft.runtime.light_imports import import_peft_without_bitsandbytes

        import_peft_without_bitsandbytes()
    from vlmpeft.cli.plan import show_plan

    show_plan(run_args, for_, json)


def estimate(
    run_args: list[str],
    gb: float | None = None,
    batch: int | None = None,
    tokens: int | None = None,
    answer_tokens: int | None = None,
    optimizer: Literal["adamw"] = "adamw",
    device: Literal["cpu", "cuda"] | None = None,
    json: bool = False,
) -> None:
    """Bytes and FLOPs of a config's plan, beside full fine-tuning and QLoRA, before anything is loaded.

    Args:
        run_args: keys of a run.
        gb: also the largest batch and the largest rank in so many GB (1e9 bytes).
        batch: conversations a step; default data.batch_size.
        tokens: of each conversation, image tokens included; default data.max_length.
        answer_tokens: of them supervised; default all after the prompt.
        optimizer: what a fit uses.
        device: it need not be there; default what is.
        json: print JSON and nothing else.
    """
    wishes = SimpleNamespace(**given(locals()))
    for name in ("gb", "batch", "tokens", "answer_tokens"):
        value = getattr(wishes, name)
        if value is not None and value <= 0:
            raise UserError(f"estimate --{name} {value:g}: give a number above 0")
    declare_torchvision()
    from vlmpeft.cli.estimate import show_estimate

    show_estimate(run_args, wishes)


# -- data ------------------------------------------------------------------------------------------


def check(run_args: list[str], html: str | None = None, json: bool = False) -> None:
    """What is in a config's data: counts, lengths, duplicates, contradictions, and labels token by token.

    Exit code 4 if something would stop or mislead a run.

    Args:
        run_args: keys of a run.
        html: write a page with thumbnails to this file.
        json: print the findings as JSON and nothing else.
    """
    declare_torchvision()
    from vlmpeft.cli.data_check import check_data

    check_data(run_args, Path(html) if html else None, json)


def template(image_dir: str, out: str, question: list[str] | None = None) -> None:
    """Write an annotation file for a folder of pictures, with answers to be filled in.

    Args:
        image_dir: folder of pictures.
        out: .json file; added to if it exists.
        question: asked about each picture; default some usual ones.
    """
    declare_torchvision()
    from vlmpeft.cli.data import write_template_file

    write_template_file(Path(image_dir), Path(out), question)


def workbench(
    task: str = "format", *, out: str | None = None, preview: str | None = None, seed: int = 0
) -> None:
    """Write a built-in task as LLaVA-format JSON and PNG, or a picture that shows all of them.

    Args:
        task: which one: source, source_pictures, format, format_scene, style, gauge, paints or stock. Behind
            it may stand the size of its shift and the number of training conversations: style@0.5,n=400.
        out: folder for *.json and images/.
        preview: .png file: scenes of every task, with questions and answers.
        seed: other seeds give other scenes.
    """
    if not out and not preview:
        raise UserError("data workbench: give --out FOLDER, or --preview FILE.png")
    declare_torchvision()
    from vlmpeft.cli.data import write_workbench

    write_workbench(task, Path(out) if out else None, Path(preview) if preview else None, seed)


# -- of adapters -----------------------------------------------------------------------------------


def merge(
    knobs: Any,
    adapters: list[str],
    out: str,
    to: Literal["adapter", "merged"] = "adapter",
    tune: str | None = None,
    data: list[str] = [],  # noqa: B006  read only
    limit: int | None = None,
    gate: Literal["answers", "weights"] | None = None,
    base: str | None = None,
    allow_base_mismatch: bool = False,
    allow_strategy: str | None = None,
    explain: bool = False,
    json: bool = False,
) -> None:
    """Merge several adapters of one base into one adapter folder, or into one checkpoint.

    Args:
        knobs: the rule and its knobs.
        adapters: folders of the adapters.
        out: folder that is written; it must not exist.
        to: an adapter, or a checkpoint that needs none: a copy of the base's files with dW added where the weights lie, in
            the memory of one tensor and its dW.
        tune: knobs to choose on --data, e.g. lam,density.
        data: files of conversations that merges are scored on by exact match (the mean decides), and adapters of another base.
        limit: items of each file that are scored.
        gate: of --to merged. answers (default): what was written, as transformers loads it, answers as the base with the
            merge attached, which takes a model's memory; weights: every tensor is read back and every other byte compared.
        base: where the base is now; default as the first adapter says.
        allow_base_mismatch: merge adapters of different bases, and show how each scores on its own and on the merge's.
        allow_strategy: strategies of your own that an adapter may name, mine.A,mine.B; they are imported.
        explain: also a picture of the conflicts.
        json: print JSON and nothing else.
    """
    settings = SimpleNamespace(**given(locals()))
    if Path(out).exists():
        raise UserError(
            f"merge: --out {out} exists already; nothing was written. Give another folder"
        )
    if gate and to == "adapter":
        raise UserError(
            f"merge: --gate {gate} has no effect on --to adapter, which changes no weights of a base; leave it out"
        )
    if not adapters:
        raise UserError("merge: --adapters is empty; give the folders of at least one adapter")
    declare_torchvision()
    from vlmpeft.cli.merge import merge_adapters

    merge_adapters(knobs, settings)


def export(
    adapter: str,
    to: Literal["merged", "peft", "vllm"],
    out: str,
    base: str | None = None,
    data: str | None = None,
    image_dir: str | None = None,
    samples: int | None = None,
    onto: Literal["full", "dequantized", "quantized"] | None = None,
    projector: str | None = None,
    tolerance: float | None = None,
    max_shard_size: str | None = None,
    allow_strategy: str | None = None,
    json: bool = False,
) -> None:
    """Write an adapter so that others can load it: a merged checkpoint, a PEFT folder or a vLLM folder.

    What was written answers as the adapter does, or exit code 4 and nothing is written.

    Args:
        adapter: folder that `fit` or `merge` wrote.
        to: what is written.
        out: folder that is written; it must not exist.
        base: where the base is now; default as the adapter says.
        data: conversations to compare answers by; default workbench:format.
        image_dir: what their image paths are relative to.
        samples: how many of them; default 8.
        onto: weights that dW of an adapter of a quantized base is added to; default full.
        projector: svd:R makes a fully trained projector LoRA of rank R.
        tolerance: largest |delta logits|, which alone decides then.
        max_shard_size: of a merged checkpoint's files; default 5GB.
        allow_strategy: strategies of your own that an adapter may name, mine.A,mine.B; they are imported.
        json: print JSON and nothing else.
    """
    settings = SimpleNamespace(**given(locals()))
    if samples is not None and samples < 1:
        raise UserError(f"export: --samples {samples} is not a number of samples; give 1 or more")
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise UserError(
            f"export: --tolerance {tolerance} is not a difference of logits; give 0 or more"
        )
    find_manifest(adapter)
    declare_torchvision()
    from vlmpeft.cli.export import export_adapter

    export_adapter(settings)


def chat(
    adapter: list[str] = [],  # noqa: B006  read only
    base: str | None = None,
    bits: Width = "nf4",
    image: str | None = None,
    once: str | None = None,
    max_new_tokens: int | None = None,
    chat_template: str | None = None,
    allow_strategy: str | None = None,
) -> None:
    """Talk with a base and its adapters in the terminal. Answers go to stdout, everything else to stderr.

    Args:
        adapter: folders, [NAME=]DIR, one or several; the last one answers first.
        base: tiny, a folder or a hub id; default the adapter's, else tiny.
        bits: of the language model.
        image: a picture to talk about.
        once: a question; print its answer and nothing else.
        max_new_tokens: of an answer; default as the adapter was scored.
        chat_template: of a base that has none, a file or a shipped name.
        allow_strategy: strategies of your own that an adapter may name, mine.A,mine.B; they are imported.
    """
    settings = SimpleNamespace(**given(locals()))
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(
            f"chat: --max_new_tokens: '{max_new_tokens}' is not a number of tokens; give 1 or more"
        )
    if once is not None and not once.strip():
        raise UserError("chat: --once: an empty question")
    if image is not None and not Path(image).expanduser().exists():
        raise UserError(f"image {image} does not exist; paths are relative to {Path.cwd()}")
    declare_torchvision()
    from vlmpeft.cli.chat import talk

    talk(settings)


# -- of this installation ---------------------------------------------------------------------------


def doctor() -> None:
    """Versions, devices, and one tiny training step; exit code 4 if it does not train."""
    declare_torchvision()
    from vlmpeft.cli.doctor import examine

    examine()


def _check_merge(options: dict[str, list[str]]) -> None:
    """The rule's name and the adapters' folders, before torch is imported for the knobs."""
    rules = choices_of("vlmpeft.merging.rule_table.RuleName")
    for name in options.get("method", ()):
        if name not in rules:
            raise UserError(
                f"merge: method: {name} is not one of {', '.join(rules)}.{did_you_mean(name, rules)}"
            )
    for folder in options.get("adapters", ()):
        if not folder.startswith("["):
            find_manifest(folder)


VERBS = {
    "plan": Verb("plan", plan),
    "estimate": Verb("estimate", estimate),
    "merge": Verb("merge", merge, knobs="vlmpeft.merging.recipe.Recipe", check=_check_merge),
    "export": Verb("export", export),
    "chat": Verb("chat", chat),
    "doctor": Verb("doctor", doctor),
    **STUDY_VERBS,
}
DATA = {
    "check": Verb("data check", check, splits=SPLITS),
    "template": Verb("data template", template),
    "workbench": Verb("data workbench", workbench, positional=("task",)),
}
DATA_USAGE = """usage: python -m vlmpeft data COMMAND [options]

  check       what is in a config's data, before training   --config C [--html FILE] [--json]
  template    an annotation file to be filled in            --image_dir DIR --out FILE
  workbench   write a built-in task as JSON and PNG         [TASK] --out DIR [--preview FILE.png]
"""


def data(args: list[str]) -> Verb | None:
    """The command of `data` that is meant; None prints what there is.

    Raises:
        UserError: there is no such command.
    """
    if not args or args[0] in ("-h", "--help"):
        print(DATA_USAGE, end="")  # noqa: T201
        return None
    if args[0] not in DATA:
        raise UserError(f"unknown data command {args[0]!r}.{did_you_mean(args[0], DATA)}")
    return DATA[args[0]]
