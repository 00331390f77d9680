"""Decide layouts, estimate and simulate runs before they start, measure steps for the planner.

Starts no workers and must not import Ray or trainers.runtime.
"""
