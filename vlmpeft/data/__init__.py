"""Conversations about pictures: reading, auditing, batching."""
