"""Folders that others load.

In: an adapter and its base. Out: a checkpoint, a PEFT folder or a vLLM folder, and a report with a gate.
May import: merging, preflight and what is below them; not training, not serving.
"""
