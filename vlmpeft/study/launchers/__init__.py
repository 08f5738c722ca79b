"""Where the runs of a study are made: in processes of their own, or on the machines of a cluster.

In: orders. Out: run folders.
May import: runtime and the orders of study. The process that makes a run is `python -m vlmpeft.cli.one_run`.
"""
