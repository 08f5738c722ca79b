"""What a format writes: headings, paragraphs, listings and tables, in order."""

from __future__ import annotations

from dataclasses import dataclass

from vlmpeft.study.report.table import Table


@dataclass(frozen=True)
class Heading:
    """A heading of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Listing:
    """Text as it is, line by line: a BibTeX file, a prompt."""

    text: str


Part = Heading | Paragraph | Listing | Table
