"""Files in, files out: predictions for tables of any size, and evaluation on labelled ones.

Only `cluster` imports Ray, when it runs.
"""
