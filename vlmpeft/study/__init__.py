"""Studies: many runs from one file, and the tables and plots that are made of their records.

In: a study file. Out: records; tables, plots and a page that are pure functions of the records.
May import: training, preflight, evaluation, adapters, data, strategies, base, runtime; not merging. `report/` imports runtime only.
"""
