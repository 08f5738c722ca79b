"""A comparison as one HTML page with thumbnails; it needs no network and no other file."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from vlmpeft.cli.compare import COLUMNS, named_cells, notes
from vlmpeft.data.conversation import Image
from vlmpeft.data.images import open_image
from vlmpeft.data.workbench.build import cached_task
from vlmpeft.data.workbench.reference import PREFIX
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import write_atomically
from vlmpeft.study.report.compare import Differences, Worse
from vlmpeft.study.report.statistics import Comparison

_SIDE = 220  # pixels of a thumbnail's longer side
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ b }} against {{ a }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td:first-child, th:first-child, td:last-child, th:last-child { text-align: left; }
tr.shown td { font-weight: bold; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .6rem; overflow-wrap: anywhere; }
.card img { max-width: 100%; min-width: 128px; background: var(--soft); image-rendering: pixelated; }
.card dl { display: grid; grid-template-columns: 5rem 1fr; gap: .2rem .5rem; margin: .4rem 0 0; } dt { opacity: .7; }
dd { margin: 0; white-space: pre-wrap; } small { display: block; }
</style></head><body>
<h1>{{ b }}<br>against {{ a }}</h1>
{% for table in tables %}
<h2>{{ table.title }}</h2><div class="wide"><table>
<tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr{{ ' class="shown"' | safe if row.shown }}>
{% for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
<h2>What got worse</h2>
<p>Got worse in {{ primary }}: {{ num_worse }} items; better: {{ num_better }}.</p>
<div class="cards">{% for item in worse %}
<div class="card">{% for picture in item.pictures %}<img alt="{{ picture.label }}" src="{{ picture.data }}">{% endfor %}
<small>{{ item.one.id }} {{ item.one.images | join(", ") }} {{ "%+.3f" | format(item.one.change) }}</small>
<dl><dt>asked</dt><dd>{{ item.one.prompt }}</dd><dt>expected</dt><dd>{{ item.one.expected }}</dd>
<dt>A</dt><dd>{{ item.one.answer_a }}</dd><dt>B</dt><dd>{{ item.one.answer_b }}</dd></dl></div>
{% endfor %}</div></body></html>
"""


def write_page(path: Path, found: Differences, image_dir: str | None = None) -> None:
    """Write the page; pictures that are not where the run read them are left out.

    Args:
        path: of the file.
        found: the comparison.
        image_dir: what the items' image paths are relative to; default as the runs' data says.

    Raises:
        UserError: it cannot be written.
    """
    folders = _picture_folders(found, image_dir)
    tables = [
        ("B against A", "metric", found.metrics, ""),
        (f"{found.primary} by {found.group_by}", found.group_by, found.groups, f"{found.primary}["),
        ("JSON fields", "field", found.fields, "json_fields."),
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_PAGE).render(
        a=found.a.name,
        b=found.b.name,
        tables=[_table(*table) for table in tables if table[2]],
        notes=notes(found),
        primary=found.primary,
        num_worse=found.num_worse,
        num_better=found.num_better,
        worse=[{"one": one, "pictures": _pictures(one, folders)} for one in found.worse],
    )
    write_atomically(path, page.encode("utf-8", "replace"))


def _table(title: str, first: Any, rows: Mapping[str, Comparison], prefix: str) -> dict[str, Any]:
    shown = [{"cells": row, "shown": is_shown} for row, is_shown in named_cells(rows, prefix)]
    return {"title": title, "columns": (first, *COLUMNS), "rows": shown}


def _picture_folders(found: Differences, image_dir: str | None) -> list[Path]:
    """Where the items' pictures may be, the likeliest first."""
    folders = [image_dir] if image_dir else []
    for run in (*found.a.runs, *found.b.runs):
        data = (run.record.get("config") or {}).get("data") or {}
        folders += [data["image_dir"]] if data.get("image_dir") else []
        for source in (data.get("test"), data.get("val"), data.get("train")):
            if isinstance(source, str):
                is_built_in = source.startswith(PREFIX)
                folders.append(str(cached_task(source) if is_built_in else Path(source).parent))
    return [Path(folder).resolve() for folder in dict.fromkeys(folders)]


def _pictures(one: Worse, folders: Sequence[Path]) -> list[dict[str, str]]:
    return [
        {"label": label, "data": data} for label in one.images[:4] for data in _data(label, folders)
    ]


def _data(label: str, folders: Sequence[Path]) -> Iterator[str]:
    """The first picture of that name as a data URI; a name that leads out of a folder is not followed."""
    for folder in folders:
        path = (folder / label).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            continue
        with contextlib.suppress(UserError):
            buffer = io.BytesIO()
            open_image(Image(str(path)), max_pixels=_SIDE * _SIDE).save(buffer, "PNG")
            yield f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            return
