"""Checks of a cluster file before anything is started: shape, machines, commands, access.

Reads files only: asks no cloud account and imports neither Ray nor torch.
"""
