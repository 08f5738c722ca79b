"""`doctor`: versions, devices, and one training step of the embedded base."""

from __future__ import annotations

import shutil

from vlmpeft.runtime.errors import GateFailed
from vlmpeft.runtime.provenance import versions
from vlmpeft.runtime.visible import terminal_console


def examine() -> None:
    """Print what is installed and whether it trains.

    Raises:
        GateFailed: it does not.
    """
    console = terminal_console()
    for package, version in versions().items():
        console.print(f"{package:14} {version}")
    console.print(f"{'device':14} {describe_devices()}")
    loss, reached, trainable = tiny_step()
    console.print(
        f"{'tiny step':14} loss {loss:.4f}, {reached} of {trainable} trainable tensors got a gradient"
    )
    if reached < trainable:
        raise GateFailed(
            f"{trainable - reached} trainable tensors of the tiny step got no gradient"
        )


def describe_devices() -> str:
    """The GPU, or why there is none although a driver sees one."""
    import torch

    if torch.cuda.is_available():
        name, memory = (
            torch.cuda.get_device_name(),
            torch.cuda.get_device_properties(0).total_memory,
        )
        return f"{name}, {memory / 2**30:.0f} GiB, bf16 {torch.cuda.is_bf16_supported()}"
    threads = f"cpu, {torch.get_num_threads()} threads"
    if shutil.which("nvidia-smi"):
        return f"{threads}; a driver sees a GPU but torch {torch.__version__} does not: install a CUDA build"
    return threads


def tiny_step() -> tuple[float, int, int]:
    """One step of LoRA + full projector on the embedded base in NF4: (loss, tensors reached, trainable)."""
    import torch

    from vlmpeft.base.loading import load_base
    from vlmpeft.base.spec import BaseSpec
    from vlmpeft.data.batches.collate import collate
    from vlmpeft.data.datamodule import VLMData
    from vlmpeft.evaluation.token_loss import supervised_loss
    from vlmpeft.strategies import Full, LoRA
    from vlmpeft.strategies.plan import Plan, attach

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor, components = load_base(BaseSpec(), device)
    attached = attach(Plan(projector=Full(), language=LoRA()), model, components)
    data = VLMData()
    data.prepare(processor, splits=("val",))
    samples = [sample for _, sample in (data.dataset("val")[i] for i in range(4))]
    batch = {key: value.to(device) for key, value in collate(samples, data.pad_id).items()}
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss, tokens = supervised_loss(model, batch)
    loss.backward()
    trainable = attached.trainable().values()
    reached = sum(parameter.grad is not None for parameter in trainable)
    return (loss / tokens).item(), reached, len(trainable)
