"""What a table shows, and what the files of its study say."""

import csv
import gzip
import io
import json

from vlmpeft.runtime.records import write_json
from vlmpeft.study.report.formats.csv_lines import as_csv
from vlmpeft.study.report.layout import make_table
from vlmpeft.study.report.records import read_study
from vlmpeft.study.report.spec import Spec


def tabled(folder, **spec):
    return make_table(read_study(folder), Spec(**spec))


def lines_of(table):
    """The lines of the CSV by row and task."""
    lines = csv.DictReader(io.StringIO(as_csv(table)))
    return {(line["row"], line["task"]): line for line in lines}


def texts(table, column, task=None):
    """Row -> text of a column, of a task where there are several."""
    place = next(
        n
        for n, c in enumerate(table.columns)
        if c.name == column and (task is None or task in c.above)
    )
    return {row.name: row.cells[place].text for row in table.rows}


def raw_scores(folder, task, row):
    """Every seed's mean score, from the items as they lie on disk."""
    means = []
    for path in sorted((folder / "runs" / "tiny" / task / row).glob("seed*/items.jsonl.gz")):
        items = list(map(json.loads, gzip.decompress(path.read_bytes()).splitlines()))
        means.append(sum(item["scores"]["exact_match"] for item in items) / len(items))
    return means


def change_info(folder, **changed):
    """Change study.json."""
    info = json.loads((folder / "study.json").read_text())
    write_json(folder / "study.json", info | changed)


def change_record(path, old, new):
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def record_of(folder, task="format", row="lora_l", seed=0):
    return folder / "runs" / "tiny" / task / row / f"seed{seed}" / "result.json"
