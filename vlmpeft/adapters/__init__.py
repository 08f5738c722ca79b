"""The adapter folder.

In: an attached plan. Out: a folder with manifest and tensors, and back; plain PEFT's form where there is one.
May import: data, strategies, base, runtime.
"""
