"""The built-in tasks: drawn scenes of tools and parts, and questions about them.

In: the name of a task. Out: annotation files and pictures, as a user would have them.
May import: runtime.
"""
