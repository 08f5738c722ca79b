"""Plots of a study.

In: the records of a study. Out: matplotlib figures; PNG and SVG, the same bytes from the same records.
May import: runtime and the records beside this folder. One file a kind of plot.
"""
