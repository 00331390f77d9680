"""The outcome of a search: the winner and its bundle, report, figures and dashboard.

Reads the journal and never writes it. `deployment` is the only module that imports `serving`.
"""
