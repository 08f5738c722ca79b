"""What is in a data set, before training.

In: a data module with its splits. Out: findings, as text, as JSON and as a page.
May import: runtime and the rest of data.
"""
