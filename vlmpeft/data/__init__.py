"""Conversations about pictures: reading, auditing, batching.

In: annotation files, pictures and a processor. Out: conversations, and the batches that are made of them.
May import: runtime. Knows no model.
"""
