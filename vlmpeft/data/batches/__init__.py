"""Conversations as tensors.

In: conversations and a processor. Out: encoded items, batches and the order they come in.
May import: runtime and the conversation and the pictures of data.
"""
