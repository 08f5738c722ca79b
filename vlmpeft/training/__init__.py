"""A run.

In: a plan, data and a base. Out: a run folder with adapter, record, items and checkpoints.
May import: preflight, evaluation, adapters, data, strategies, base, runtime; not merging.
"""
