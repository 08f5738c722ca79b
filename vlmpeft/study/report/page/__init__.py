"""The page of a study.

In: the records of a study, and a way to its pictures. Out: one HTML file without scripts that loads nothing.
May import: runtime and the rest of study/report.
"""
