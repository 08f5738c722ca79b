"""An audit as one HTML page with thumbnails; it needs no network and no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlmpeft.data.audit.audit import Audit, SplitAudit
from vlmpeft.data.audit.findings import Finding
from vlmpeft.data.audit.text import number_rows, span
from vlmpeft.data.batches.token_view import TokenView
from vlmpeft.data.conversation import Conversation, Image
from vlmpeft.data.datamodule import VLMData
from vlmpeft.data.images import open_image
from vlmpeft.runtime.errors import UserError
from vlmpeft.runtime.records import write_atomically

_SHOWN = 24  # conversations a split
_EXAMPLES = 50  # of a finding
_SIDE = 160  # pixels of a thumbnail's longer side

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --learnt: #1a7f37; --image: #0969da; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --learnt: #56d364; --image: #79c0ff; --bad: #ff7b72; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: grid; grid-template-columns: 9rem 1fr 4rem; gap: .5rem; align-items: center; font-variant-numeric: tabular-nums; }
.bar i { display: block; height: .8rem; background: var(--image); border-radius: 2px; min-width: 1px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .6rem; overflow-wrap: anywhere; }
.card img { max-width: 100%; max-height: 160px; background: var(--soft); } .card p { margin: .3rem 0; white-space: pre-wrap; }
.card small { opacity: .7; } .answer, .learnt { color: var(--learnt); }
.tokens { font: 13px/2 ui-monospace, monospace; } .tokens span { border: 1px solid var(--line); border-radius: 3px; padding: 0 .2em; white-space: pre; }
.tokens .learnt { border-color: var(--learnt); font-weight: bold; } .tokens .image { color: var(--image); }
.tokens b { display: block; margin-top: .4rem; font-weight: normal; opacity: .7; }
.error { color: var(--bad); } details { margin: .4rem 0; } summary { cursor: pointer; }
"""


def write_page(path: Path, audit: Audit, data: VLMData) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written.
    """
    body = "\n".join(_sections(audit, data))
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>data check</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>data check</h1>\n{body}\n</body></html>\n"
    )
    write_atomically(path, page.encode("utf-8", "replace"))


def _sections(audit: Audit, data: VLMData) -> Iterator[str]:
    yield "<h2>What to look at</h2>"
    yield "\n".join(map(_finding, audit.findings)) or "<p>Nothing to complain about.</p>"
    yield "<h2>Numbers</h2>" + _numbers(audit.splits)
    for name, split in audit.splits.items():
        yield f"<h2>Tokens of a conversation, {_text(name)}</h2>" + _histogram(split)
    if audit.groups:
        rows = [
            (
                name,
                f"{g['answers']:,}",
                f"{g['distinct']:,}",
                g["commonest"][:80],
                f"{g['share']:.1%}",
            )
            for name, g in audit.groups.items()
        ]
        yield "<h2>Groups</h2>" + _table(
            ("group", "answers", "different", "commonest answer", "its share"), rows
        )
    for name, split in audit.splits.items():
        rows = [(a[:120], f"{n:,}", f"{n / split.answers:.1%}") for a, n in split.commonest]
        yield f"<h2>Commonest answers, {_text(name)}</h2>" + _table(
            ("answer", "times", "share"), rows
        )
    yield "<h2>Token by token</h2><p>What is learnt is green.</p>"
    yield "\n".join(map(_tokens, audit.samples))
    for name in audit.splits:
        shown = _spread(data.conversations(name))
        yield f"<h2>{len(shown)} conversations of {_text(name)}</h2>"
        yield f'<div class="cards">{"".join(map(_card, shown))}</div>'


def _text(value: object) -> str:
    return html.escape(str(value))


def _finding(finding: Finding) -> str:
    head = (
        f'<span class="{_text(finding.level)}">{_text(finding.level)}</span>: {_text(finding.text)}'
    )
    if not finding.examples:
        return f"<p>{head}</p>"
    items = "".join(f"<li>{_text(example)}</li>" for example in finding.examples[:_EXAMPLES])
    items += "".join(
        f"<li>{''.join(map(_thumbnail, g))}</li>" for g in finding.pictures[:_EXAMPLES]
    )
    is_open = " open" if finding.level == "error" else ""
    return f"<details{is_open}><summary>{head}</summary><ul>{items}</ul></details>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose cells of figures stand to the right."""

    def cell(value: str) -> str:
        is_number = value.replace(",", "").replace(".", "").removesuffix("%").isdigit()
        return f"<td{' class=number' if is_number else ''}>{_text(value)}</td>"

    header = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{header}</tr>{body}</table>"


def _numbers(splits: dict[str, SplitAudit]) -> str:
    return _table(("", *splits), ((label, *cells) for label, cells in number_rows(splits)))


def _histogram(split: SplitAudit) -> str:
    most = max(count for _, _, count in split.histogram)
    return "".join(
        f'<div class="bar"><span>{span(low, high)}</span>'
        f'<span><i style="width:{100 * count / most:.1f}%"></i></span><span>{count:,}</span></div>'
        for low, high, count in split.histogram
    )


def _tokens(view: TokenView) -> str:
    parts, role = [], ""
    for row in view.rows:
        if row.role != role:
            role = row.role
            parts.append(f"<b>{_text(role)}</b>")
        kind = "learnt" if row.is_learnt else "image" if row.is_image else ""
        shown = f"{row.count} image tokens" if row.is_image else row.text.replace("\n", "\u21b5")
        parts.append(f'<span class="{kind}" title="token {row.position}">{_text(shown)}</span> ')
    if view.hidden:
        parts.append(f"<b>and {view.hidden:,} more tokens</b>")
    return f'<h3>{_text(view.id)}</h3><div class="tokens">{"".join(parts)}</div>'


def _spread(conversations: list[Conversation]) -> list[Conversation]:
    """Some from everywhere, in order."""
    number = min(_SHOWN, len(conversations))
    return [conversations[i * len(conversations) // number] for i in range(number)]


def _card(conversation: Conversation) -> str:
    pictures = "".join(map(_thumbnail, conversation.images[:4]))
    turns = "".join(
        f'<p class="{"answer" if m.role == "assistant" and m.loss else ""}">{_text(m.text[:500])}</p>'
        for m in conversation.messages
    )
    accepted = {r for m in conversation.messages for r in m.references}
    more = (
        f"<p><small>accepted: {_text(', '.join(sorted(accepted)[:10]))}</small></p>"
        if accepted
        else ""
    )
    return f'<div class="card">{pictures}{turns}{more}<small>{_text(conversation.id)}</small></div>'


def _thumbnail(image: Image) -> str:
    try:
        picture = open_image(image, max_pixels=_SIDE * _SIDE)
    except UserError as error:
        return f'<p class="error">{_text(error)}</p>'
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    name = image.label
    return f'<img alt="{_text(name)}" title="{_text(name)}" src="data:image/jpeg;base64,{data}">'
