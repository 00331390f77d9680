"""Diagnosis of a live cluster: probe every node and pair of nodes, then judge what was observed.

Only `probe` and `ranks` import Ray, when they run; `diagnosis` and `bandwidth` are pure functions.
"""
