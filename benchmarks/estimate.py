"""What `estimate` says beside what is measured: on the embedded base, and on another with --base.

    python benchmarks/estimate.py                            # tiny; Linux, CPU, 2 minutes
    python benchmarks/estimate.py --base DIR                 # also DIR 6 GB, 5 minutes

On tiny bytes are counted: `held` is every storage of weights, quantization tables, gradients and optimizer state after
an AdamW step (target 5 %), `saved` every storage that a forward keeps for the backward pass and that is no
parameter (target 10 %). On DIR it is `peak`: the highest resident size of three steps of Lightning's fit in a fresh
process, minus that before the base was loaded (target 25 %), with glibc told to give freed memory back
(MALLOC_MMAP_THRESHOLD_) and without the pages of the checkpoint's file that are not used any more. `peak, default heap`
is the same as glibc has it otherwise, keeping and fragmenting what was freed; it is shown beside without a target. Exit code 4 if a target is missed. A record of DIR that is not measured again is kept.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from vlmpeft.base.loading import recompute_activations
from vlmpeft.base.spec import BaseSpec, Bits
from vlmpeft.evaluation.token_loss import supervised_loss
from vlmpeft.preflight.forecast import CHECKPOINTED, PLAIN, Load, blank_of, forecast
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.records import write_json
from vlmpeft.strategies import DoRA, Full, LoRA
from vlmpeft.strategies.plan import Plan, attach
from vlmpeft.training.module import VLMModule

import lightning.pytorch as pl  # isort: skip  after vlmpeft.training.module

CPU, STEPS, MAX_PIXELS = torch.device("cpu"), 3, 401_408
TARGETS = {"held": 0.05, "saved": 0.10, "peak": 0.25}
PEAK, DEFAULT_HEAP = "peak", "peak, default heap"
GIVE_BACK = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
FP32, NF4 = Bits(language="fp32"), Bits()
CASES = {
    "LoRA": (FP32, Plan(language=LoRA())),
    "LoRA, nf4": (NF4, Plan(language=LoRA())),
    "full": (FP32, Plan(Full(), Full(), Full())),
    "DoRA, full projector": (FP32, Plan(projector=Full(), language=DoRA())),
    "LoRA on all, nf4 on all": (Bits("nf4", "nf4", "nf4"), Plan(LoRA(), LoRA(), LoRA())),
}
SIZES = {"tiny": (8, 128, 32), "other": (4, 256, 64)}  # batch, tokens, answer tokens


def load_of(base: str, kind: str) -> Load:
    batch, tokens, answer = SIZES[kind]
    return Load(blank_of(BaseSpec(path=base), MAX_PIXELS), batch, tokens, answer)


def run_module(case: str, base: str, kind: str) -> VLMModule:
    bits, plan = CASES[case]
    return VLMModule(
        BaseSpec(path=base, bits=bits), plan, gradient_checkpointing=kind == CHECKPOINTED
    )


# -- counted ---------------------------------------------------------------------------------------


def count_bytes(case: str, load: Load, kind: str) -> dict[str, int]:
    """Bytes held and saved by one real step."""
    module = run_module(case, "tiny", kind)
    module.load(CPU)
    model = module.model
    attached = module.attached = attach(module.plan, model, module.components)
    module._set_modes()
    if kind == CHECKPOINTED:
        recompute_activations(model)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage())
        return tensor

    optimizer = torch.optim.AdamW(attached.parameter_groups())
    batch = load.blank.batch(load.batch, load.tokens, load.answer_tokens)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = supervised_loss(model, batch)
    saved_bytes = sum(s.nbytes() for at, s in saved.items() if at not in parameters)
    loss.backward()
    optimizer.step()
    return {"held": _held(model, optimizer), "saved": saved_bytes}


def _held(model: Any, optimizer: torch.optim.Optimizer) -> int:
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    for parameter in model.parameters():
        if state := getattr(parameter, "quant_state", None):
            tensors += [state.absmax, state.code, state.offset]
            tensors += [state.state2.absmax, state.state2.code] if state.nested else []
    for state in optimizer.state.values():
        tensors += list(state.values())
    storages = [t.untyped_storage() for t in tensors if t is not None]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


# -- resident --------------------------------------------------------------------------------------


class Meter(pl.Callback):
    """The highest resident size from the first batch on."""

    def on_train_batch_start(self, *_: Any) -> None:
        if not hasattr(self, "begun"):
            self.begun = True
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            _give_back_files()
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM = VmRSS (man proc_pid_clear_refs)


def _give_back_files() -> None:
    """Take the checkpoint's pages, of which no one has been written to, out of the resident size; what is used comes back.

    The others are no memory of the process: tensors that were read once, to be quantized.
    """
    libc, dont_need = ctypes.CDLL("libc.so.6"), 4  # MADV_DONTNEED (man madvise)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(at, 16) for at in line.split()[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), dont_need)


def resident_bytes(case: str, base: str, kind: str) -> int:
    """Growth of the resident size up to the highest of a few steps, in this process."""
    with redirect_stdout(sys.stderr):
        load = load_of(base, "other")
        for small in ("tiny", base):  # the first imports what is imported late
            if small == base:
                ctypes.CDLL("libc.so.6").malloc_trim(0)
                before = _status_bytes("VmRSS")
            batches = [_small() if small == "tiny" else _batch(load)] * STEPS
            loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
            trainer = pl.Trainer(
                accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[Meter()],
                enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
            )  # fmt: skip
            trainer.fit(run_module(case, small, kind), loader)
    return _status_bytes("VmHWM") - before


def _small() -> dict[str, torch.Tensor]:
    return _batch(load_of("tiny", "tiny"))


def _batch(load: Load) -> dict[str, torch.Tensor]:
    return load.blank.batch(load.batch, load.tokens, load.answer_tokens)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


# -- compared --------------------------------------------------------------------------------------


def compare_tiny() -> list[dict[str, Any]]:
    load = load_of("tiny", "tiny")
    rows = []
    for case, (bits, plan) in CASES.items():
        estimate = forecast(BaseSpec(bits=bits), plan, load, CPU)
        for kind in (PLAIN, CHECKPOINTED):
            step = estimate.steps[kind]
            said = {"held": estimate.static.total, "saved": step.saved_bytes + step.logits_bytes}
            measured = count_bytes(case, load, kind)
            rows += [_row("tiny", case, kind, what, said[what], measured[what]) for what in said]
    return rows


def compare_resident(base: str) -> list[dict[str, Any]]:
    load, rows = load_of(base, "other"), []
    for case in ("LoRA", "LoRA, nf4", "full"):
        bits, plan = CASES[case]
        estimate = forecast(BaseSpec(path=base, bits=bits), plan, load, CPU)
        for kind in (PLAIN, CHECKPOINTED):
            for what in (PEAK, DEFAULT_HEAP) if case == "LoRA" else (PEAK,):
                measured = _in_fresh_process(case, base, kind, GIVE_BACK if what == PEAK else {})
                rows.append(_row(Path(base).name, case, kind, what, estimate.peak(kind), measured))
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _in_fresh_process(case: str, base: str, kind: str, environment: dict[str, str]) -> int:
    """`resident_bytes` in a process whose allocator reads `environment` when it starts."""
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh_process:
            return fresh_process.submit(resident_bytes, case, base, kind).result()
    finally:
        for name in environment:
            del os.environ[name]


def _row(
    base: str, case: str, kind: str, what: str, estimated: int, measured: int
) -> dict[str, Any]:
    error, target = estimated / measured - 1, TARGETS.get(what)
    return {
        "base": base, "plan": case, "step": kind, "what": what, "estimated": estimated, "measured": measured,
        "error": error, "met": None if target is None else abs(error) <= target,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, in MB of 1e6 bytes."""
    lines = ["| base | plan | step | what | estimate, MB | measured, MB | error | target |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in rows:
        sizes = f"{row['estimated'] / 1e6:,.2f} | {row['measured'] / 1e6:,.2f}"
        target = TARGETS.get(row["what"])
        verdict = f"{target:.0%} {'met' if row['met'] else 'missed'}" if target else "-"
        lines.append(
            f"| {row['base']} | {row['plan']} | {row['step']} | {row['what']} | {sizes} | {row['error']:+.1%} | {verdict} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", help="folder of another base, whose resident size is measured")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/estimate.json"))
    args = parser.parse_args()
    rows = compare_tiny()
    if args.base:
        rows += compare_resident(args.base)
    elif args.output.is_file():
        rows += [
            row for row in json.loads(args.output.read_text())["rows"] if row["base"] != "tiny"
        ]
    record = {
        "schema": 1,
        "benchmark": "estimate",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "cpu_threads": torch.get_num_threads(),
        "sizes": {name: dict(zip(("batch", "tokens", "answer_tokens"), size, strict=True)) for name, size in SIZES.items()},
        "targets": TARGETS,
        "rows": rows,
        "table": table(rows),
    }  # fmt: skip
    write_json(args.output, record)
    print(record["table"])
    return 0 if all(row["met"] is not False for row in rows) else 4


if __name__ == "__main__":
    sys.exit(main())
