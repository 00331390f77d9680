"""A bundle computes: texts to token ids, token ids to predictions, by one of several backends.

Imports no Ray, no HTTP and no registry.
"""
