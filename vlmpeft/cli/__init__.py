"""The command line: one file a verb, named as the verb.

In: arguments. Out: a typed request to a room below; a table or JSON on the terminal.
May import: every room.
"""
