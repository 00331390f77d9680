"""The recipe: every setting that decides what a training run computes.

Imports only `cluster`; no torch and no Ray, so that planning stays fast.
"""
