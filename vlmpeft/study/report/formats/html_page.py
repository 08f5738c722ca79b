"""A page of its own: no script, no other file, light and dark."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from vlmpeft.runtime.visible import visible
from vlmpeft.study.report.document import Part


def html(parts: Iterable[Part], title: str) -> str:
    """The parts as a page; every text is escaped.

    Args:
        parts: of the page.
        title: of the browser's window.
    """
    return _environment().get_template("page.html.jinja").render(parts=list(parts), title=title)


def fragment(parts: Iterable[Part]) -> str:
    """The parts without a page around them, for a page that has the style of `page.html.jinja`."""
    template = _environment().get_template("parts.html.jinja")
    return template.render(parts=list(parts))


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vlmpeft.study.report.formats", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda part: type(part).__name__
    environment.filters["shown"] = shown
    return environment


def shown(text: str) -> str:
    """Text with the sign for plus or minus, and nothing that acts on the page.

    >>> shown("94.7 +- 2.0") == "94.7 \N{PLUS-MINUS SIGN} 2.0"
    True
    """
    return visible(text).replace(" +- ", " \N{PLUS-MINUS SIGN} ")
