#!/usr/bin/env python3
"""Write the tables of README.md and docs/ and config headers from the committed records, docs/architecture.md from the package.

python scripts/tables.py            # or: make tables
python scripts/tables.py --check    # exit 1 if a table is not what its records give
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from architecture import BLOCKS
from matrices import architectures, conformance, markdown, spread
from merge_tables import merging_cost_table, merging_memory, merging_speed_table, merging_table
from study_tables import front_page, old_plots, studies, study_files, whole
from workbench_table import workbench_table

ROOT = Path(__file__).parent.parent


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text())


def tiny_table() -> str:
    """Held-out exact match of the embedded base, kind by kind."""
    scores = read("vlmpeft/base/tiny/scores.json")
    return markdown(
        ["kind", "exact match"], [[kind, f"{value:.1%}"] for kind, value in scores.items()]
    )


def format_runs() -> dict[str, list[dict]]:
    """Config -> its records on the `format` task, one a seed."""
    runs = defaultdict(list)
    for path in sorted((ROOT / "results" / "format").glob("*-seed*.json")):
        runs[path.stem.rsplit("-seed", 1)[0]].append(json.loads(path.read_text()))
    return runs


def exact_match(records: list[dict], which: str) -> list[float]:
    return [record["metrics"][which]["test"]["exact_match"] for record in records]


def benchmark_table(name: str) -> str:
    """What a benchmark's record says."""
    path = f"results/benchmarks/{name}.json"
    if not (ROOT / path).is_file():
        return f"No record yet: `python benchmarks/{name.partition('-')[0]}.py`."
    return read(path)["table"]


def metrics_table() -> str:
    """Every registered metric: its name in a config, in a record, and the first line of its docstring."""
    registry = ast.parse((ROOT / "vlmpeft/runtime/registry.py").read_text())
    names = next(
        ast.literal_eval(node.value)
        for node in registry.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "METRICS"  # type: ignore[attr-defined]
    )
    rows = []
    for short, path in sorted(names.items()):
        module, _, cls = path.rpartition(".")
        source = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        node = next(n for n in source.body if isinstance(n, ast.ClassDef) and n.name == cls)
        rows.append(
            [f"`{short}`", f"`{_reported(node)}`", (ast.get_docstring(node) or "").split("\n")[0]]
        )
    return markdown(["model.metrics", "in the record", ""], rows)


def _reported(node: ast.ClassDef) -> str:
    """The `name` a class gives itself."""
    for statement in node.body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "name":  # type: ignore[attr-defined]
            return ast.literal_eval(statement.value)
    return "<metric>_chance_corrected"


def columns_table() -> str:
    """Every column that a study's table can have."""
    source = ast.parse((ROOT / "vlmpeft/study/report/columns.py").read_text())
    columns = next(
        node.value
        for node in source.body
        if isinstance(node, ast.AnnAssign) and node.target.id == "COLUMNS"  # type: ignore[attr-defined]
    )
    rows = []
    for key, kind in zip(columns.keys, columns.values, strict=True):  # type: ignore[attr-defined]
        title, scope, about = (kind.args[n].value for n in (0, 1, 3))
        rows.append([f"`{key.value}`", title.replace("{metric}", "its name").replace("{unit}", ", %").replace("{points}", ", points"), scope, about])  # fmt: skip
    return markdown(["column", "header", "one for each", ""], rows)


def export_table() -> str:
    """What becomes of an adapter of a quantized base, route by route."""
    rows = [
        [
            row["route"],
            f"{row['max_logit']:.2g}",
            f"{row['mean_kl']:.2g}",
            f"{row['argmax_agreement']:.1%}",
        ]
        for row in read("results/export/merged.json")["routes"]
    ]
    found = read("results/export/projector.json")["projector"]
    note = (
        f"\n\nIts projector as LoRA of rank {found['rank']}: {found['energy']:.2%} of the squared norm, largest difference of "
        f"logits {found['change']['max_logit']:.2g}, loss {found['loss'][0]:.4f} -> {found['loss'][1]:.4f} nats a token."
    )
    return markdown(["route", "largest difference", "mean KL", "same argmax"], rows) + note


TABLES = {
    "tiny": tiny_table,
    "ranks": lambda: front_page("ranks"),
    "ranks_whole": lambda: whole("ranks"),
    "grid_small_whole": lambda: whole("grid_small"),
    "study": lambda: benchmark_table("study"),
    "metrics": metrics_table,
    "columns": columns_table,
    "table": lambda: benchmark_table("table"),
    "step": lambda: benchmark_table("step"),
    "scoring_tiny": lambda: benchmark_table("scoring-tiny"),
    "scoring_smol": lambda: benchmark_table("scoring-smol-vlm"),
    "data": lambda: benchmark_table("data"),
    "workbench": workbench_table,
    "estimate": lambda: benchmark_table("estimate"),
    "strategies": lambda: benchmark_table("strategies"),
    "export": export_table,
    "merging": merging_table,
    "merging_speed": merging_speed_table,
    "merging_cost": merging_cost_table,
    "merging_memory": merging_memory,
    "architectures": architectures,
    "conformance": conformance,
    **BLOCKS,
}


def fill(text: str) -> str:
    """Replace what stands between `<!-- table:NAME -->` (or `diagram:NAME`) and `<!-- end -->`."""

    def block(match: re.Match) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n<!-- end -->"

    marked = r"(<!-- (?:table|diagram):(\w+) -->)\n.*?<!-- end -->"
    return re.sub(marked, block, text, flags=re.DOTALL)


def header(text: str, records: list[dict]) -> str:
    """A config with the time and the result of its runs in its header."""
    seconds = [sum(record["seconds"].values()) for record in records]
    before, after = statistics.mean(exact_match(records, "base")), exact_match(records, "tuned")
    lines = {
        "time": f"{statistics.mean(seconds):.0f} s, scoring before and after included "
        f"({records[0]['device']})",
        "result": f"exact match {100 * before:.1f} -> {spread(after)} % on test, "
        f"seed {', '.join(str(record['seed']) for record in records)}",
    }
    for key, value in lines.items():
        text = re.sub(rf"^# {key}: .*$", f"# {key}: {value}", text, flags=re.MULTILINE)
    return text


def main() -> int:
    runs = format_runs()
    new = {
        path: fill(path.read_text())
        for path in (
            ROOT / "README.md",
            ROOT / "docs/architecture.md",
            ROOT / "docs/results.md",
            ROOT / "docs/metrics.md",
            ROOT / "docs/data.md",
            ROOT / "docs/studies.md",
            ROOT / "docs/estimate.md",
            ROOT / "docs/architectures.md",
            ROOT / "docs/conformance.md",
            ROOT / "docs/merging.md",
            ROOT / "docs/export.md",
        )
    }
    for config, records in runs.items():
        path = ROOT / "configs" / f"{config}.yaml"
        new[path] = header(path.read_text(), records)
    files = {path: text.encode() for path, text in new.items()}
    gone = []
    for folder in studies():
        made = study_files(folder)
        files |= made
        gone += old_plots(folder, made)
    stale = [path for path in files if not path.is_file() or files[path] != path.read_bytes()]
    if "--check" not in sys.argv:
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[path])
        for path in gone:
            path.unlink()
    stale = [str(path.relative_to(ROOT)) for path in (*stale, *gone)]
    print("stale: " + ", ".join(stale) if stale else "tables are what their records give")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
