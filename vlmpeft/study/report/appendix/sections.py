"""The sections of an appendix, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vlmpeft.study.report.appendix.data import data, decoding, examples
from vlmpeft.study.report.appendix.environment import environment, references
from vlmpeft.study.report.appendix.runs import budget, failures, records
from vlmpeft.study.report.appendix.settings import search, settings
from vlmpeft.study.report.contents import Contents
from vlmpeft.study.report.document import Heading, Paragraph, Part
from vlmpeft.study.report.records import Study
from vlmpeft.study.report.spec import Spec

_SECTIONS: dict[str, Callable[[Contents], Iterator[Part]]] = {
    "Settings": settings,
    "Search for settings": search,
    "Runs and hours": budget,
    "Failed runs": failures,
    "Data": data,
    "An example of each task": examples,
    "Decoding": decoding,
    "Software and hardware": environment,
    "Records": records,
    "References": references,
}


def make_appendix(study: Study, spec: Spec = Spec()) -> list[Part]:  # noqa: B008  a value
    """The appendix of a study's table.

    Args:
        study: its records.
        spec: of the table; its rows, tasks, bases and names hold here, too.

    Raises:
        UserError: the spec names a row, task or base that is not there.
    """
    contents = Contents(study, spec)
    parts: list[Part] = [Paragraph(f"Appendix: {spec.caption or study.info.title}")]
    for title, section in _SECTIONS.items():
        found = list(section(contents))
        parts += [Heading(title), *found] if found else []
    return parts
