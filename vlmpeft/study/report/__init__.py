"""Tables, plots and statistics of a study.

In: a folder of records. Out: Markdown, LaTeX, CSV, HTML; PNG and SVG; intervals and p-values.
May import: runtime. Never torch: a table of a thousand records is a matter of seconds.
"""
