"""Samplers, schedulers and comparisons: pure functions of the trials so far.

Nothing here reads a clock, a file or Ray, so a search that was killed repeats its decisions.
"""
