"""The tables of docs/merging.md."""

from __future__ import annotations

import json
import statistics

from matrices import ROOT, markdown, spread


def _read(name: str) -> dict:
    """A benchmark's record; empty if there is none."""
    path = ROOT / f"results/benchmarks/{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def merging_table() -> str:
    """Merges of adapters of several tasks: a row a rule, over seeds."""
    records = [
        json.loads(p.read_text()) for p in sorted((ROOT / "results/merging").glob("seed*.json"))
    ]
    if not records:
        return "No record yet: `python scripts/merging.py`."
    tasks = records[0]["tasks"]
    rows = []
    for name in records[0]["rows"]:
        entries = [record["rows"][name] for record in records]
        if refused := entries[0].get("refused"):
            rows.append([name, refused, *[""] * (len(tasks) + 2)])
            continue
        scores = [entry["test"] for entry in entries]
        own = [{t: record["rows"][t]["test"][t] for t in tasks} for record in records]
        share = [
            statistics.mean(s[t] / o[t] for t in tasks) for s, o in zip(scores, own, strict=True)
        ]
        rows.append(
            [
                name,
                "; ".join(dict.fromkeys(_knob_text(entry) for entry in entries)),
                *(spread([s[t] for s in scores]) for t in tasks),
                spread([min(s.values()) for s in scores]),
                spread(share),
            ]
        )
    similar = [record["rows"]["PEFT's ties, on A and B"]["cosine_to_ties"] for record in records]
    note = (
        f"\n\nCosine between PEFT's `ties` (A and B apart) and TIES on dW, on these adapters' LoRAs: "
        f"{statistics.mean(similar):.3f} (mean of {len(similar)} seeds)."
    )
    return markdown(["adapter", "knobs", *tasks, "worst", "normalised"], rows) + note


def _knob_text(entry: dict) -> str:
    knobs = entry.get("knobs", {})
    return ", ".join(f"{k} {v:g}" for k, v in knobs.items() if k in ("lam", "density"))


def merging_speed_table() -> str:
    """Merges beside PEFT's, from the benchmark's record."""
    record = _read("merging")
    if not record:
        return "No record yet: `python benchmarks/merging.py`."
    rows = []
    for name, theirs in (("svd", "svd"), ("ties", "ties_svd")):
        row = record[name]
        ratio = f"{row['times_faster']:.1f} ({row['times_faster_low']:.1f} to {row['times_faster_high']:.1f})"
        errors = [f"{row[key]:.2g}" for key in ("error", "error_peft")]
        rows.append([f"`{name}`", f"`{theirs}`", "void" if row["void"] else ratio, *errors])
    head = (
        f"{record['adapters']} adapters of rank {record['rank']} over {record['layers']} layers of {record['width']} x "
        f"{record['width']}, merged to rank {record['out_rank']}, {record['threads']} thread(s); errors are relative, "
        "against fp64 for svd and against the dense result for ties.\n\n"
    )
    return head + markdown(
        ["ours", "`add_weighted_adapter`", "times faster (range)", "error", "PEFT's error"], rows
    )


def merging_cost_table() -> str:
    """A merged model's forward beside its base's."""
    record = _read("merged_step")
    if not record:
        return "No record yet: `python benchmarks/merged_step.py`."
    rows = []
    for name in ("merged", "attached"):
        ratio = record[f"{name} / base"]
        low, high = ratio["interval"]
        rows.append([f"{name} / base", f"{ratio['median']:.3f}", f"{low:.3f} to {high:.3f}"])
    same = "the base's modules and no other" if record["same_modules_as_base"] else "other modules"
    note = (
        f"\n\nThe merged model has {same}; its logits are the attached adapter's to {record['max_logit']:.1e}, where the "
        f"adapter changes them by {record['effect']:.2g}. {record['rounds']} rounds, {record['threads']} thread(s)."
    )
    return markdown(["forward", "ratio", "95 % interval"], rows) + note


def merging_memory() -> str:
    """What a streamed merge into a large base held."""
    record = _read("streaming")
    if not record:
        return "No record yet: `python benchmarks/streaming.py DIR`."
    bound = f" ({record['upper_bound']})" if "upper_bound" in record else ""
    return (
        f"`{record['method']}` over the whole model of {record['adapters']} adapters of rank {record['rank']} on every linear layer "
        f"of a LLaVA-1.5-7B-shaped base ({record['parameters'] / 1e9:.2f} billion parameters, {record['base_gb']:.1f} GB, random "
        f"values): {record['peak_resident_gb']:.2f} GB resident at most{bound}, {record['tensors_changed']} tensors changed, on "
        f"{record['threads']} thread(s) of a shared machine in {record['seconds'] / 60:.0f} minutes."
    )
