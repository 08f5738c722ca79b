"""What every other room stands on; nothing here knows a model.

In: values, paths, names. Out: errors of one line, files and folders written whole, provenance, shipped files.
May import: nothing of vlmpeft.
"""
