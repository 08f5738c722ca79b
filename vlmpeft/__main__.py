"""`python -m vlmpeft VERB ...`: verb -> function; user errors become one line and exit code 2."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence

USAGE = """usage: python -m vlmpeft VERB [options]

fine-tune vision-language models, component by component

  fit         train a plan; score before and after; leaves runs/NAME/
  validate    score val               --adapter DIR
  test        score test              --adapter DIR
  predict     write predictions.jsonl --adapter DIR
  plan        what a config trains, without loading weights
  estimate    bytes and FLOPs of a config, beside full fine-tuning and QLoRA   --gb N
  sweep       run a study: rows x tasks x seeds from one file   STUDY.yaml --dry_run=true
  data        check, template, workbench: look at data, begin a data set, write a built-in one
  merge       several adapters -> one   --adapters A B --method ties --out DIR
  export      adapter -> merged checkpoint, PEFT folder, vLLM folder   --adapter DIR --to merged --out DIR
  table       records of a study as a table   DIR --format md|tex|csv|html --spec paper.yaml
  plot        plots of a study's records, PNG and SVG   DIR --kind pareto loss
  report      a study as one HTML page   DIR --out FILE
  compare     two runs, adapters or rows of a study, item by item   A B --fail_if "exact_match < -0.01"
  chat        a conversation in the terminal   --adapter [NAME=]DIR --image PNG --once QUESTION
  doctor      versions, devices, one tiny step

  python -m vlmpeft fit --config lora_r16.yaml
  python -m vlmpeft VERB --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns 0 fine, 2 user error, 3 interrupted and resumable, 4 a gate failed."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")  # noqa: T201
        return 0
    from vlmpeft.runtime.errors import GateFailed, Interrupted, UserError, did_you_mean

    try:
        verb, rest = args[0], args[1:]
        if verb not in VERBS:
            raise UserError(f"unknown verb {verb!r}.{did_you_mean(verb, VERBS)}")
        _quiet_libraries()
        if argv is None:
            os.environ["VLMPEFT_OWN_PROCESS"] = str(os.getpid())
        VERBS[verb](verb, rest)
    except UserError as error:
        return _fail(_as_typed(str(error)), 2)
    except GateFailed as error:
        return _fail(error, 4)
    except Interrupted as error:
        return _fail(error, 3)
    except KeyboardInterrupt:
        return _fail("interrupted", 3)
    return 0


def _as_typed(message: str) -> str:
    """A library names a setting by its key; where it is the next move, it is shown as it is typed.

    >>> _as_typed("there is no val split; give one: data.val=FILE")
    'there is no val split; give one: --data.val=FILE'
    """
    move = r"\b(give(?: one| another| one that does)?:? |set |e\.g\. |; )((?:data|model)\.[\w.]+=)"
    return re.sub(move, r"\1--\2", message)


def _fail(error: object, code: int) -> int:
    from vlmpeft.runtime.visible import visible

    message = visible(" ".join(str(error).split()))
    print(f"vlmpeft: {message}", file=sys.stderr)  # noqa: T201
    return code


def _quiet_libraries() -> None:
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)


def _run(verb: str, args: list[str]) -> None:
    """A verb of Lightning's; its keys are checked before torch is imported."""
    from vlmpeft.cli.config_files import run_arguments
    from vlmpeft.cli.early_check import SPLITS

    scored = {"validate": ("val",), "test": ("test",), "predict": ()}  # test, else val
    found = run_arguments(args, splits=scored.get(verb, SPLITS))
    from vlmpeft.runtime.torchvision_ops import declare_torchvision_ops

    declare_torchvision_ops()
    from vlmpeft.cli.lightning_verbs import run

    run(verb, found)


def _typed(verb: str, args: list[str]) -> None:
    from vlmpeft.cli.verbs import VERBS as TYPED

    TYPED[verb].call(args)


def _data(verb: str, args: list[str]) -> None:
    from vlmpeft.cli.verbs import data

    if command := data(args):
        command.call(args[1:])


VERBS: dict[str, Callable[[str, list[str]], None]] = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), _run),
    **dict.fromkeys(("plan", "estimate", "merge", "export", "chat", "doctor"), _typed),
    **dict.fromkeys(("sweep", "table", "plot", "report", "compare"), _typed),
    "data": _data,
}

if __name__ == "__main__":
    sys.exit(main())
