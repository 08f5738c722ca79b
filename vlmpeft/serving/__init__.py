"""Answers to questions.

In: a base, adapters and questions. Out: answers, as they are generated.
May import: evaluation, adapters and what is below them; no training code, no export.
"""
