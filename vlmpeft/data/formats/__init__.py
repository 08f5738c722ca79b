"""Annotation files.

In: paths and hub ids. Out: conversations, each with the file and the record it comes from.
May import: runtime and the conversation of data.
"""
