"""Many images to verified token shards: list, plan, run, commit, verify, retry, merge, export.

Importing this package loads neither torch nor Pillow: listing, checking and converting need neither.
"""
