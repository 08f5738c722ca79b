"""Formats that a table or an appendix is written in.

In: headings, paragraphs, listings and tables as values. Out: Markdown, LaTeX, CSV, HTML, a terminal's table.
May import: runtime and the rest of study/report.
"""
