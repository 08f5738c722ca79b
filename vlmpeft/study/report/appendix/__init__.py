"""The appendix of a study's table: how its numbers came to be.

In: a study. Out: headings, paragraphs, listings and tables.
May import: runtime and the rest of study/report.
"""
